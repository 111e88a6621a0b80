"""Generated from ``protos/generator.proto`` by ``make protos``; do not edit."""
