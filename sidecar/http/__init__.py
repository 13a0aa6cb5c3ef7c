"""The edge of the HTTP API: a uvicorn protocol with limits, routing by Dapr's rules, the guard, Dapr's error bodies."""
