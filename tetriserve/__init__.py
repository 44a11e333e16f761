"""The public face: client, command line and the generated contract."""
