"""What other tools have packed or written, as recipes and as a deployment."""
