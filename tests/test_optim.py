"""RowAdam against dense Adam, step by step."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

import mmrec_mrdib
from mmrec_mrdib import general
from mmrec_mrdib import trainer as trainer_module
from mmrec_mrdib.errors import ContractError
from mmrec_mrdib.experiment.record import load_checkpoint
from mmrec_mrdib.experiment.run import make_config, prepare
from mmrec_mrdib.models.vbpr import VBPR
from mmrec_mrdib.optim import RowAdam, rows
from mmrec_mrdib.trainer import MRdIBTrainer


def steps(n, scale, seed=0, n_rows=50, width=3):
    """Ids and upstream gradients of n steps; rows are drawn unevenly, so that lags go from 0 to far."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(n):
        ids = torch.unique((n_rows * torch.rand(6, generator=generator) ** 4).long())
        yield ids, scale * torch.randn(len(ids), width, generator=generator) * torch.rand(1, generator=generator) ** 3


# eps is 1e-8: gradients far above it, around it (where the square root of v is of its size), and far below.
@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e-8, 1e-11])
@pytest.mark.parametrize("start", ["zeros", "resumed"])
def test_rows_move_as_under_dense_adam(scale, start):
    torch.manual_seed(0)
    initial = torch.randn(50, 3, dtype=torch.float64)
    table, dense = nn.Parameter(initial.clone()), nn.Parameter(initial.clone())
    other, other_dense = nn.Parameter(torch.ones(3).double()), nn.Parameter(torch.ones(3).double())
    ours = RowAdam([table, other], [table], lr=0.01)
    theirs = torch.optim.Adam([dense, other_dense], lr=0.01)
    if start == "resumed":  # far from the first steps, where the bias corrections change fastest
        for p in (dense, other_dense):
            p.grad = scale * torch.randn_like(p)
        theirs.step()
        for state in theirs.state.values():
            state["step"].fill_(1000)
        with torch.no_grad():
            table.copy_(dense), other.copy_(other_dense)
        ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
    for n, (ids, upstream) in enumerate(steps(700, scale)):
        if n == 300:
            for optimizer in (ours, theirs):
                optimizer.param_groups[0]["lr"] = 0.003
        read = rows(table, ids)
        # A row that is read is where dense Adam has it.
        torch.testing.assert_close(
            read.detach(), dense.detach()[ids], rtol=1e-5, atol=2e-5 if start == "zeros" else 1e-7
        )
        ours.zero_grad(), theirs.zero_grad()
        ((read * upstream).sum() + (other * upstream[0]).sum()).backward()
        ((dense[ids] * upstream).sum() + (other_dense * upstream[0]).sum()).backward()
        ours.step(), theirs.step()
    moved = (dense.detach() - initial).abs().max()
    ours.flush()
    torch.testing.assert_close(
        table.detach(), dense.detach(), rtol=0, atol=2e-5 * moved.item() if start == "zeros" else 1e-6
    )
    torch.testing.assert_close(other, other_dense)
    for key in ("exp_avg", "exp_avg_sq", "step"):
        torch.testing.assert_close(ours.state[table][key], theirs.state[dense][key], rtol=1e-5, atol=0)


def test_what_is_not_read_by_rows_is_refused_and_nothing_is_deferred_without_a_table():
    table = nn.Parameter(torch.ones(4, 2))
    optimizer = RowAdam([table], [table], lr=0.1)
    table.sum().backward()
    with pytest.raises(ContractError, match=r"read it with optim\.rows"):
        optimizer.step()
    with pytest.raises(ValueError, match="weight decay"):
        RowAdam([table], [table], weight_decay=0.1)
    with torch.no_grad():  # as in evaluation, after a flush
        assert torch.equal(rows(table, torch.tensor([1])), table[1:2])


def test_rows_read_twice_in_a_step_add_up():
    table, dense = nn.Parameter(torch.ones(9, 2)), nn.Parameter(torch.ones(9, 2))
    ours, theirs = RowAdam([table], [table], lr=0.1), torch.optim.Adam([dense], lr=0.1)
    a, b = torch.tensor([1, 4]), torch.tensor([4, 7])
    for _ in range(3):
        ours.zero_grad(), theirs.zero_grad()
        (rows(table, a).square().sum() + 3 * rows(table, b).sum()).backward()
        (dense[a].square().sum() + 3 * dense[b].sum()).backward()
        ours.step(), theirs.step()
    ours.flush()
    torch.testing.assert_close(table, dense)


@pytest.fixture
def rows_pay(monkeypatch):
    """40 users and 30 items are large for batches of 8."""
    monkeypatch.setattr(trainer_module, "ROWS_PAY", 2)


def test_training_with_large_tables_is_training_with_dense_adam(toy, monkeypatch, rows_pay):
    """The whole way through the trainer, plain and +MRdIB."""
    values = {"data_path": str(toy), "epochs": 3, "train_batch_size": 8, "learning_rate": 0.01}
    for model in ("VBPR", "VBPR+MRdIB (paper)"):
        by_rows = mmrec_mrdib.train(model, "toy", 1, values=values, runs=toy / "rows")
        with monkeypatch.context() as patch:
            patch.setattr(VBPR, "row_tables", lambda self: [])
            dense = mmrec_mrdib.train(model, "toy", 1, values=values, runs=toy / "dense")
        for ours, theirs in zip(by_rows["epochs"], dense["epochs"], strict=True):
            for part, value in theirs["losses"].items():
                assert ours["losses"][part] == pytest.approx(value, rel=1e-4, abs=1e-5)
        a, b = (load_checkpoint(Path(r["folder"]) / "best.pt")["state_dict"] for r in (by_rows, dense))
        for name in a:
            torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-4)


def test_interrupted_training_with_large_tables_goes_on_as_it_would_have(toy, monkeypatch, rows_pay):
    values = {"data_path": str(toy), "epochs": 4, "train_batch_size": 8, "checkpoint_interval": 0}
    whole = mmrec_mrdib.train("VBPR", "toy", 1, values=values, runs=toy / "a")
    original = MRdIBTrainer._train_epoch

    def stop_in_the_third(self, train_data, epoch_idx, *args, **kwargs):
        if epoch_idx == 2:
            raise KeyboardInterrupt
        return original(self, train_data, epoch_idx, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(MRdIBTrainer, "_train_epoch", stop_in_the_third)
        mmrec_mrdib.train("VBPR", "toy", 1, values=values, runs=toy / "b")
    resumed = mmrec_mrdib.train("VBPR", "toy", 1, values=values, runs=toy / "b", resume=True)
    assert [e["losses"] for e in resumed["epochs"]] == [e["losses"] for e in whole["epochs"]]


@pytest.mark.parametrize(
    "values", [{"weight_decay": 0.1}, {"clip_grad_norm": {"max_norm": 1.0}}, {"train_batch_size": 64}]
)
def test_where_each_step_has_to_do_with_all_rows_adam_stays_dense(toy, values, rows_pay):
    config = make_config("VBPR", "toy", 1, values={"data_path": str(toy), "train_batch_size": 8, **values})
    trainer = MRdIBTrainer(config, VBPR(config, prepare(config).parts[0]), toy / "run")
    assert type(trainer.optimizer) is torch.optim.Adam


def test_histories_that_read_all_rows_leave_adam_dense(toy, rows_pay):
    """The backbone's own encoders under history views: each step encodes the whole catalogue, more than the batch's rows."""
    values = {"encoders": "backbone", "user_view": "history", "training": "joint", "readout": "none"}
    config = make_config(
        "VBPR+MRdIB", "toy", 1, values={"data_path": str(toy), "epochs": 1, "train_batch_size": 8} | values
    )
    splits = prepare(config)
    model = general.build(config, splits.parts[0])
    fitted = MRdIBTrainer(config, model, toy)
    assert model.backbone.row_tables() and not fitted._row_tables()
    fitted._train_epoch(splits.train, 0)  # by rows it would read what it has not announced
