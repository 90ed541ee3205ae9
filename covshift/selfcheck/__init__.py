"""Known answers: what the tests say where nothing moves, and networks with planted faults and their healthy twins."""
