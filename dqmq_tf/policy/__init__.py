"""What decides the bit-widths: the quality encoder, the policy and its decisions."""
