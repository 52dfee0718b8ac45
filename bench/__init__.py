"""How fast the service is: scenarios, the floor they are compared with, and their origin, sink and client."""
