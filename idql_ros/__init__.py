"""Robot side of idql_ros: runs an IDQL policy file on a robot or in simulation."""
