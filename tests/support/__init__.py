"""What the tests share: the farm harness, waits, inputs and fakes."""
