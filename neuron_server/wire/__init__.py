"""The gRPC edge between a router and its generators: the only package that knows gRPC and protobuf."""
