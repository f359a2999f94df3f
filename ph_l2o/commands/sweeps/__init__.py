"""Many runs by one command: jobs in processes of their own, that go on where they were stopped; their summary."""
