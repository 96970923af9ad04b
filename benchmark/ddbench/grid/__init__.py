"""Jobs and who does them: planning, the runner, its workers."""
