"""HTTP: what a client sends and sees. The only package that knows fastapi and pydantic."""
