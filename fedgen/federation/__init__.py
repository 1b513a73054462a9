"""The drivers. They differ in how requests reach clients and in nothing else."""
