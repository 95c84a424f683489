"""What the chunks of an episode earn of the answers at its end.

    N_t = sum over questions q, over entries m that q rests on and that chunk t wrote last, of score_q / (|M_q| n)

as Fine-Mem has it (arXiv 2601.08435). Where the verdict says which entries the answer was taken from, M_q are these,
else all that were found. What rests on no entry is spread evenly, so that the shares of all chunks sum to r1.
"""

from reward.qa import QAResult


def evidence_shares(qa: QAResult, num_sessions: int, share: float) -> list[float] | None:
    """Return what each chunk earns: `share` of r1 by evidence, the rest evenly; None where r1 is missing."""
    if qa.accuracy is None:
        return None
    earned = [(1 - share) * qa.accuracy / num_sessions] * num_sessions
    judged = [pair for pair in zip(qa.retrievals, qa.verdicts, strict=True) if pair[1].correct is not None]
    for retrieval, verdict in judged:
        entries = retrieval.entries
        if verdict.rests_on is not None:
            entries = [entry for entry in entries if entry.id in verdict.rests_on]
        worth = share * verdict.correct / len(judged)
        writers = [entry.session for entry in entries] or range(num_sessions)
        for session in writers:
            earned[session] += worth / len(writers)
    return earned
