"""What must hold of the GPU's side, as far as it can be known without one."""
