"""Tests of lab 6: what each defect did to experiments."""

import pytest
import torch
from labkit import close, generator, load, randn

lab = load(__file__)
POINTS = {
    "stage_of": 2,
    "flag": 2,
    "labels_of": 3,
    "think": 2,
    "positions_of": 2,
    "next_logits": 1,
    "load_embedding": 2,
    "best_checkpoint": 1,
    "normalise_targets": 1,
    "accumulation_weights": 2,
}


class Test_stage_of:
    @pytest.mark.parametrize("epochs_per_stage", [1, 2, 3, 5])
    def test_a_stage_lasts_its_number_of_epochs(self, epochs_per_stage):
        """Operator precedence let a curriculum of three epochs per stage finish in a third of the time."""
        expected = [stage for stage in range(4) for _ in range(10 * epochs_per_stage)]
        assert [lab.stage_of(step, 10, epochs_per_stage) for step in range(len(expected))] == expected

    def test_with_one_step_per_epoch(self):
        assert [lab.stage_of(step, 1, 3) for step in range(7)] == [0, 0, 0, 1, 1, 1, 2]
        assert lab.stage_of(299, 1, 3) == 99


class Test_flag:
    @pytest.mark.parametrize("text", ["False", "false", "no", "NO", "off", "0", " False "])
    def test_no_is_false(self, text):
        assert lab.flag(text) is False

    @pytest.mark.parametrize("text", ["True", "TRUE", "yes", "on", "1", " true"])
    def test_yes_is_true(self, text):
        assert lab.flag(text) is True

    @pytest.mark.parametrize(
        "text", ["", "maybe", "2", "None", "y e s", "tru", "y", "t", "n", "f", "disable"]
    )
    def test_anything_else_is_an_error(self, text):
        with pytest.raises(ValueError):
            lab.flag(text)


EOS, LATENT = 2, 9


def label_rows():
    ids = torch.tensor(
        [
            [5, 6, LATENT, LATENT, 7, 8, EOS, EOS, EOS],
            [5, LATENT, 7, EOS, EOS, EOS, EOS, EOS, EOS],
            [3, 4, 5, 6, LATENT, LATENT, LATENT, 7, EOS],
        ]
    )
    return ids, torch.tensor([2, 1, 4]), torch.tensor([7, 4, 9])


class Test_labels_of:
    def test_by_hand(self):
        x = -100
        assert lab.labels_of(*label_rows(), LATENT).tolist() == [
            [x, x, x, 7, 8, EOS, x, x, x],
            [x, 7, EOS, x, x, x, x, x, x],
            [x, x, x, x, x, x, 7, EOS, x],
        ]

    def test_the_first_end_is_learned_and_the_padding_after_it_is_not(self):
        """If padding has the id of <eos>, masking by id removes the end, and no masking trains on padding."""
        ids, prompt, lengths = label_rows()
        assert ((lab.labels_of(ids, prompt, lengths, LATENT) == EOS).sum(1) == 1).all()

    def test_the_length_decides_where_the_end_is_not_the_first_end_id(self):
        ids = torch.tensor([[5, 6, 7, EOS, 8, EOS, EOS, EOS]])
        assert lab.labels_of(ids, torch.tensor([2]), torch.tensor([6]), LATENT).tolist() == [
            [-100, 7, EOS, 8, EOS, -100, -100, -100]
        ]

    @pytest.mark.parametrize("B, T", [(1, 2), (1, 6), (7, 12), (3, 70)])
    def test_against_loops(self, B, T):
        ids = torch.randint(0, 12, (B, T), generator=generator(1))
        lengths = torch.randint(2, T + 1, (B,), generator=generator(2))
        prompt = (torch.rand(B, generator=generator(3)) * lengths).long().clamp(min=1)
        labels = lab.labels_of(ids, prompt, lengths, LATENT)
        assert labels.dtype == torch.long
        for b in range(B):
            for t in range(T):
                labelled = t + 1 < lengths[b] and t + 1 >= prompt[b] and ids[b, t + 1] != LATENT
                assert labels[b, t] == (ids[b, t + 1] if labelled else -100), (b, t)


def counting_model(calls):
    """A step whose hidden state is the running sum of all inputs so far, times 1.1."""

    def step(x, past):
        calls.append((x.shape[1], len(past)))
        before = past[-1] if past else torch.zeros_like(x[:, 0])
        sums = 1.1 * x.cumsum(1) + before[:, None]
        return sums, [*past, sums[:, -1]]

    return step


class Test_think:
    def test_two_latents_by_hand(self):
        prefix = torch.tensor([[[1.0], [2.0]]], dtype=torch.float64)
        first = 1.1 * 3
        close(
            lab.think(counting_model([]), prefix, 2),
            torch.tensor([[[first], [1.1 * first + first]]], dtype=torch.float64),
        )

    @pytest.mark.parametrize("B, T, n", [(1, 1, 1), (2, 3, 4), (3, 2, 20)])
    def test_every_latent_sees_the_question_and_all_latents_before(self, B, T, n):
        prefix = randn(B, T, 3, salt=4)
        latents = lab.think(counting_model([]), prefix, n)
        state = 1.1 * prefix.sum(1)
        for i in range(n):
            close(latents[:, i], state)
            state = state + 1.1 * state

    def test_the_prefix_is_run_once_and_each_latent_once(self):
        calls = []
        lab.think(counting_model(calls), randn(1, 4, 2, salt=5), 3)
        assert calls[0] == (4, 0) and all(T == 1 and past == i for i, (T, past) in enumerate(calls[1:], 1))
        assert len(calls) in (3, 4)

    def test_the_gradient_goes_back_through_the_chain_to_the_question(self):
        prefix = randn(2, 3, 2, salt=6).requires_grad_()
        lab.think(counting_model([]), prefix, 3)[:, -1].sum().backward()
        close(prefix.grad, torch.full((2, 3, 2), 1.1 * 2.1**2, dtype=torch.float64))


class Test_positions_of:
    def test_padding_on_either_side_by_hand(self):
        real = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 0, 0, 0, 1]]).bool()
        positions = lab.positions_of(real)
        assert positions.dtype == torch.long
        assert positions.tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 3, 4], [0, 0, 0, 0, 0]]

    @pytest.mark.parametrize("left", [True, False])
    def test_a_rows_positions_do_not_depend_on_how_much_it_is_padded(self, left):
        lengths, T = [1, 4, 40, 3], 40
        place = torch.arange(T)
        for n in lengths:
            real = (place >= T - n) if left else (place < n)
            positions = lab.positions_of(real[None])
            assert positions.shape == (1, T) and positions[0, real].tolist() == list(range(n))
            assert (positions >= 0).all()

    def test_rows_of_a_batch(self):
        real = torch.tensor([[0, 1, 1, 1], [1, 1, 0, 0], [0, 1, 1, 0]]).bool()
        assert [lab.positions_of(real)[b, real[b]].tolist() for b in range(3)] == [[0, 1, 2], [0, 1], [0, 1]]


class Test_next_logits:
    @pytest.mark.parametrize("lengths", [[4], [1, 3, 4], [2, 2], [5, 1, 3, 2]], ids=str)
    def test_every_row_is_read_at_its_own_end(self, lengths):
        """Batches gave other answers than single questions, because the last column of a short row is
        padding."""
        logits = randn(len(lengths), max(lengths) + 1, 7, salt=7)
        close(
            lab.next_logits(logits, torch.tensor(lengths)),
            torch.stack([logits[b, n - 1] for b, n in enumerate(lengths)]),
            0,
        )
        assert lab.next_logits(logits.float(), torch.tensor(lengths)).dtype == torch.float32

    def test_the_gradient_is_at_the_last_real_position_only(self):
        logits = randn(2, 4, 3, salt=8).requires_grad_()
        lab.next_logits(logits, torch.tensor([2, 4])).sum().backward()
        assert logits.grad.sum(-1).tolist() == [[0, 3, 0, 0], [0, 0, 0, 3]]


class Test_load_embedding:
    @pytest.mark.parametrize("V, saved", [(8, 5), (8, 8), (6, 1)])
    def test_saved_rows_are_kept_when_the_table_has_grown(self, V, saved):
        table, old = randn(V, 4, salt=9), randn(saved, 4, salt=10)
        loaded = lab.load_embedding(table, old)
        close(loaded[:saved], old, 0)
        close(loaded[saved:], table[saved:], 0)
        assert lab.load_embedding(table.float(), old.float()).dtype == torch.float32

    @pytest.mark.parametrize("shape", [(5, 3), (5, 5), (9, 4), (9, 3)])
    def test_what_does_not_fit_is_an_error_and_not_ignored_silently(self, shape):
        with pytest.raises(ValueError):
            lab.load_embedding(randn(8, 4, salt=11), randn(*shape, salt=12))

    def test_the_result_is_a_new_table(self):
        table, old = randn(8, 4, salt=13), randn(8, 4, salt=14)
        kept = old.clone()
        lab.load_embedding(table, old).mul_(0)
        assert torch.equal(old, kept)


class Test_best_checkpoint:
    def test_validation_chooses_and_test_does_not(self):
        history = [
            {"step": 100, "val": 0.5, "test": 0.9},
            {"step": 200, "val": 0.7, "test": 0.4},
            {"step": 300, "val": 0.6, "test": 0.8},
        ]
        assert lab.best_checkpoint(history) == 200

    def test_the_earliest_of_equals_whatever_the_test_accuracy(self):
        history = [
            {"step": 300, "val": 0.6, "test": 0.9},
            {"step": 100, "val": 0.6, "test": 0.1},
            {"step": 200, "val": 0.6, "test": 0.5},
        ]
        assert lab.best_checkpoint(history) == 100

    def test_a_small_difference_is_one(self):
        history = [{"step": 100, "val": 0.7121, "test": 0.5}, {"step": 200, "val": 0.7124, "test": 0.5}]
        assert lab.best_checkpoint(history) == 200

    def test_with_no_right_answer_anywhere_it_is_the_earliest(self):
        assert lab.best_checkpoint([{"step": s, "val": 0.0, "test": 0.0} for s in (200, 100)]) == 100

    def test_another_test_split_chooses_the_same(self):
        g = generator(15)
        for _ in range(20):
            val, test = torch.rand(2, 6, generator=g).tolist()
            history = [{"step": i, "val": v, "test": t} for i, (v, t) in enumerate(zip(val, test))]
            assert lab.best_checkpoint(history) == val.index(max(val))


class Test_normalise_targets:
    @pytest.mark.parametrize("scale", [1e-4, 0.018, 1.0, 70.0])
    def test_the_std_is_the_models_own(self, scale):
        """A number written into the code was one model's; with another the latent head learned the wrong
        scale."""
        table, targets = scale * (randn(50, 6, salt=16) + 0.3), scale * randn(5, 6, salt=17)
        entries = table.flatten().tolist()
        mean = sum(entries) / len(entries)
        std = (sum((x - mean) ** 2 for x in entries) / (len(entries) - 1)) ** 0.5
        out = lab.normalise_targets(targets, table)
        if abs((out * std / targets).mean() - ((len(entries) - 1) / len(entries)) ** -0.5) < 1e-9:
            std *= ((len(entries) - 1) / len(entries)) ** 0.5  # dividing by n is accepted, too
        close(out, targets / std)

    def test_the_table_gets_no_gradient(self):
        table = randn(20, 3, salt=18).requires_grad_()
        assert not lab.normalise_targets(randn(2, 3, salt=19), table).requires_grad

    def test_the_dtype_is_kept(self):
        assert (
            lab.normalise_targets(torch.ones(2, 3), randn(5, 3, dtype=torch.float32)).dtype == torch.float32
        )


class Test_accumulation_weights:
    @pytest.mark.parametrize("counts", [[3, 5, 1, 7], [4], [2, 2], [0, 6, 1]], ids=str)
    def test_the_parts_together_are_the_mean_over_all_labels(self, counts):
        """With equal shares a label of a short part counts more than one of a long part."""
        each = [randn(n, salt=20 + i).square() for i, n in enumerate(counts)]
        losses = torch.stack([x.mean() if len(x) else torch.tensor(0.0, dtype=torch.float64) for x in each])
        factors = lab.accumulation_weights(losses, torch.tensor(counts), len(counts))
        assert len(factors) == len(counts)
        total = sum(f * x for f, x in zip(factors, losses.tolist()))
        assert total == pytest.approx(torch.cat(each).mean().item(), rel=1e-12)
        assert all(f == 0 for f, n in zip(factors, counts) if n == 0)

    def test_no_labels_at_all(self):
        assert list(lab.accumulation_weights(torch.zeros(2), torch.tensor([0, 0]), 2)) == [0, 0]
