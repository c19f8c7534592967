"""Training below the wall: rollouts through the cycles, objectives, gradients and steps."""
