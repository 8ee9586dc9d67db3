"""What people use: the command line, the config, the job, reports and progress."""
