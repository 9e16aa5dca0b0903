"""The lab: a generated world, its processor, its model."""
