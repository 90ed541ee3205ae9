"""Everything that touches a running model: sites, hooks, steps, schedules, parameter norms."""
