"""One file a step, each behind the one that it names. What was released once is never changed again."""
