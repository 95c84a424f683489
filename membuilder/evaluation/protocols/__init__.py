"""Other ways of keeping a long text, as their authors describe them, for the same questions and the same reader."""
