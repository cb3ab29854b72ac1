"""What bits cost, and which bits meet a budget."""
