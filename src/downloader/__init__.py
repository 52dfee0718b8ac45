"""Downloads files politely: jobs in over HTTP, limits per group over a whole fleet, callbacks out."""
