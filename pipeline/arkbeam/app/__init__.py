"""The program around the pipeline: command line, config, job, reports and progress."""
