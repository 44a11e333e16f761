"""What the execution engine costs: in the service, between orders, by groups, sizes and models."""
