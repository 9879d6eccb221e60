"""Epochs until the validation no longer gets better."""

from logging import getLogger

import torch
from torch import optim
from torch.nn.utils.clip_grad import clip_grad_norm_
from utils.topk_evaluator import TopKEvaluator
from utils.utils import early_stopping


class AbstractTrainer:
    def __init__(self, config, model):
        self.config, self.model = config, model


class Trainer(AbstractTrainer):
    def __init__(self, config, model, mg=False):
        super().__init__(config, model)
        self.logger = getLogger()
        self.learning_rate, self.weight_decay = config["learning_rate"], config["weight_decay"] or 0.0
        self.epochs, self.stopping_step = config["epochs"], config["stopping_step"]
        self.eval_step = min(config["eval_step"], self.epochs)
        self.clip_grad_norm, self.req_training = config["clip_grad_norm"], config["req_training"]
        self.valid_metric, self.valid_metric_bigger = config["valid_metric"].lower(), config["valid_metric_bigger"]
        self.device = config["device"]
        self.start_epoch, self.cur_step, self.best_valid_score = 0, 0, -1
        self.best_valid_result = self.best_test_upon_valid = {}
        self.optimizer = optim.Adam(self.model.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay)
        decay, period = config["learning_rate_scheduler"]
        self.lr_scheduler = optim.lr_scheduler.LambdaLR(self.optimizer, lr_lambda=lambda e: decay ** (e / period))
        self.evaluator = TopKEvaluator(config)

    def _train_epoch(self, train_data, epoch_idx, loss_func=None):
        if not self.req_training:
            return 0.0, []
        self.model.train()
        loss_func = loss_func or self.model.calculate_loss
        total, batches = None, []
        for interaction in train_data:
            self.optimizer.zero_grad()
            losses = loss_func(interaction)
            if isinstance(losses, tuple):
                loss = sum(losses)
                each = tuple(part.item() for part in losses)
                total = each if total is None else tuple(map(sum, zip(total, each)))
            else:
                loss = losses
                total = loss.item() if total is None else total + loss.item()
            if torch.isnan(loss):
                self.logger.info("Loss is nan at epoch: %d. Exiting.", epoch_idx)
                return loss, torch.tensor(0.0)
            loss.backward()
            if self.clip_grad_norm:
                clip_grad_norm_(self.model.parameters(), **self.clip_grad_norm)
            self.optimizer.step()
            batches.append(loss.detach())
        return total, batches

    def _valid_epoch(self, valid_data):
        result = self.evaluate(valid_data)
        return result[self.valid_metric], result

    def fit(self, train_data, valid_data=None, test_data=None, saved=False, verbose=True):
        for epoch in range(self.start_epoch, self.epochs):
            self.model.pre_epoch_processing()
            loss, _ = self._train_epoch(train_data, epoch)
            if torch.is_tensor(loss):
                break
            self.lr_scheduler.step()
            self.model.post_epoch_processing()
            if (epoch + 1) % self.eval_step == 0:
                score, valid_result = self._valid_epoch(valid_data)
                self.best_valid_score, self.cur_step, stop, better = early_stopping(
                    score, self.best_valid_score, self.cur_step, self.stopping_step, self.valid_metric_bigger
                )
                _, test_result = self._valid_epoch(test_data)
                if better:
                    self.best_valid_result, self.best_test_upon_valid = valid_result, test_result
                if stop:
                    break
        return self.best_valid_score, self.best_valid_result, self.best_test_upon_valid

    @torch.no_grad()
    def evaluate(self, eval_data, is_test=False, idx=0):
        self.model.eval()
        lists = []
        for batch in eval_data:
            scores = self.model.full_sort_predict(batch)
            masked = batch[1]
            scores[masked[0], masked[1]] = -1e10
            lists.append(torch.topk(scores, max(self.config["topk"]), dim=-1)[1])
        return self.evaluator.evaluate(lists, eval_data, is_test=is_test, idx=idx)
