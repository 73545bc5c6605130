"""What the ``ironcd egress`` commands stand on: the organisation's file, repositories' policies, and past events."""
