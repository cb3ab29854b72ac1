"""What decides the bits: quality encoder, policy, decisions."""
