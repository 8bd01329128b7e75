"""What nothing is certified by, and benches and tests compare with."""

from tune.certificate.bounds import level, loss_p_value, upper_bound


def lower_bound(failures: int, rows: int, confidence: float) -> float:
    """The smallest risk that `failures` in `rows` do not rule out; 0.0 of no rows.

    Of the rows that do not fail, `upper_bound` (Clopper and Pearson, 1934).
    """
    return 1.0 - upper_bound(rows - failures, rows, confidence)


def allowed_losses(gains: int, rows: int, loss: float, confidence: float) -> int:
    """The most losses with which a policy passes; -1 if not even none will do.

    By `loss_p_value`, which rises in the losses.
    """
    passes, fails = -1, rows - gains + 1
    while fails - passes > 1:
        losses = (passes + fails) // 2
        if loss_p_value(losses, gains, rows, loss, confidence) <= level(confidence):
            passes = losses
        else:
            fails = losses
    return passes
