"""The paper's equations against numbers worked out by hand."""

import math

import pytest
import torch

from sysdpo.losses import denoising_log_ratio, direct_margin, preference_loss, sampling_margin

LN2 = math.log(2)


def test_direct_margin_sums_over_variables() -> None:
    chosen = torch.tensor([[1.0, 2.0, 3.0], [0.0, -1.0, 0.5]])
    rejected = torch.tensor([[0.5, 0.0, -1.0], [1.0, 1.0, 1.0]])
    assert direct_margin(chosen, rejected).tolist() == pytest.approx([6.5, -3.5])
    assert direct_margin(rejected, chosen).tolist() == pytest.approx([-6.5, 3.5])


def test_sampling_margin_by_hand() -> None:
    """Probabilities 0.1 + 0.3 against 0.2 + 0.2 chosen, 0.05 + 0.15 against 0.3 + 0.1 rejected: ln 1 - ln 0.5."""
    policy_chosen, reference_chosen, policy_rejected, reference_rejected = (
        torch.tensor([p]).log() for p in ([0.1, 0.3], [0.2, 0.2], [0.05, 0.15], [0.3, 0.1])
    )
    margin = sampling_margin(policy_chosen, reference_chosen, policy_rejected, reference_rejected)
    assert margin.tolist() == pytest.approx([LN2])
    flipped = sampling_margin(policy_rejected, reference_rejected, policy_chosen, reference_chosen)
    assert flipped.tolist() == pytest.approx([-LN2])


def test_sampling_margin_with_one_sample_is_the_direct_margin() -> None:
    a, b, c, d = torch.randn(4, 5, 1).unbind(0)
    assert torch.allclose(sampling_margin(a, b, c, d), direct_margin(a - b, c - d), atol=1e-6)


def test_rows_with_fewer_samples_are_filled_with_minus_infinity() -> None:
    full = [torch.randn(1, 2, requires_grad=True) for _ in range(4)]
    padding = torch.full((1, 3), -torch.inf)
    padded = sampling_margin(*(torch.cat([t, padding], -1) for t in full))
    assert torch.allclose(padded, sampling_margin(*full))
    padded.sum().backward()
    for t in full:
        assert t.grad is not None
        assert torch.isfinite(t.grad).all()
        assert float(t.grad.sum().abs()) == pytest.approx(1.0)  # a softmax over the real samples, up to the sign


def test_very_improbable_samples_do_not_underflow() -> None:
    far = torch.tensor([[-5000.0, -5001.0]])
    assert sampling_margin(far, far - 1, far, far).tolist() == pytest.approx([1.0])


@pytest.mark.parametrize("beta", [0.1, 0.5, 1.0, 2.0])
def test_at_margin_zero_the_sigmoid_loss_is_ln_2_exactly(beta: float) -> None:
    loss = preference_loss(torch.zeros(3), beta)
    assert loss.tolist() == torch.tensor([2.0]).log().tolist() * 3
    assert preference_loss(torch.zeros(1), beta, label_smoothing=0.2).item() == pytest.approx(LN2, abs=1e-7)


def test_links_by_hand() -> None:
    margin = torch.tensor([2.0, -2.0])  # beta 0.5: beta m = 1, -1
    assert preference_loss(margin, 0.5).tolist() == pytest.approx([math.log1p(math.exp(-1)), math.log1p(math.e)])
    smooth = 0.9 * math.log1p(math.exp(-1)) + 0.1 * math.log1p(math.e)
    assert preference_loss(margin, 0.5, label_smoothing=0.1)[0].item() == pytest.approx(smooth)
    assert preference_loss(margin, 0.5, "ipo").tolist() == pytest.approx([(2 - 1) ** 2, (-2 - 1) ** 2])
    assert preference_loss(margin, 0.25, "hinge").tolist() == pytest.approx([0.5, 1.5])
    assert preference_loss(torch.tensor([9.0]), 0.25, "hinge").tolist() == [0.0]


def test_gradient_of_the_sigmoid_loss_is_minus_beta_sigma_of_minus_beta_m() -> None:
    margin = torch.tensor([3.0, -3.0, 0.0], requires_grad=True)
    preference_loss(margin, 0.5).sum().backward()
    assert margin.grad is not None
    expected = [-0.5 / (1 + math.exp(0.5 * m)) for m in (3, -3, 0)]
    assert margin.grad.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("link", ["sigmoid", "ipo", "hinge"])
def test_extreme_margins_stay_finite(link: str) -> None:
    margin = torch.tensor([1e4, -1e4], requires_grad=True)
    loss = preference_loss(margin, 1.0, link)  # type: ignore[arg-type]
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert margin.grad is not None
    assert torch.isfinite(margin.grad).all()


def test_bf16_inputs_are_summed_in_fp32() -> None:
    parts = torch.full((1, 300), 1.0, dtype=torch.bfloat16)  # bf16 cannot count beyond 256
    assert direct_margin(parts, torch.zeros_like(parts)).item() == 300.0
    assert preference_loss(torch.zeros(1, dtype=torch.bfloat16), 0.1).dtype == torch.float32


def test_denoising_log_ratio_by_hand() -> None:
    policy = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]], [[[0.0, 0.0], [0.0, 4.0]]]])
    reference = torch.full((2, 1, 2, 2), 3.0)
    # means 2.5 and 1 against 3, sums 10 and 4 against 12
    assert denoising_log_ratio(policy, reference, 1000).tolist() == pytest.approx([500.0, 2000.0])
    assert denoising_log_ratio(policy, reference, 10, "sum").tolist() == pytest.approx([20.0, 80.0])
    weight = torch.tensor([2.0, 0.5])
    assert denoising_log_ratio(policy, reference, 10, "sum", weight).tolist() == pytest.approx([40.0, 40.0])
    assert denoising_log_ratio(policy, policy, 1000).tolist() == [0.0, 0.0]


def test_lower_error_than_the_reference_counts_for_the_policy() -> None:
    better = denoising_log_ratio(torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1), 1)
    assert better.item() > 0


def test_wrong_shapes_and_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[B, V\]"):
        direct_margin(torch.zeros(2, 3), torch.zeros(2, 2))
    with pytest.raises(ValueError, match=r"\[B, V\]"):
        direct_margin(torch.zeros(2), torch.zeros(2))
    with pytest.raises(ValueError, match=r"\[B, K\]"):
        sampling_margin(torch.zeros(2, 2), torch.zeros(2, 2), torch.zeros(2, 2), torch.zeros(2, 1))
    with pytest.raises(ValueError, match=r"\[N, C, H, W\]"):
        denoising_log_ratio(torch.zeros(2, 3), torch.zeros(2, 3), 10)
    with pytest.raises(ValueError, match="reduction='max'"):
        denoising_log_ratio(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1), 10, "max")  # type: ignore[arg-type]
    for settings, part in [
        ({"beta": 0.0}, "beta=0.0"),
        ({"beta": 1.0, "label_smoothing": 0.5}, "label_smoothing=0.5"),
        ({"beta": 1.0, "label_smoothing": 0.1, "link": "ipo"}, "link=ipo"),
        ({"beta": 1.0, "link": "tanh"}, "link='tanh'"),
    ]:
        with pytest.raises(ValueError, match=part):
            preference_loss(torch.zeros(1), **settings)  # type: ignore[arg-type]
