"""The control service over gRPC and mTLS, and who may call what of it."""
