"""Which addresses this service may connect to on a client's behalf, and the one way to connect to them."""
