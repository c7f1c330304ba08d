"""The losses of the loss head: of a chunk of hidden states, with logits in f32, over a count of tokens."""
import torch
import torch.nn.functional as F


def cross_entropy(hidden, head, targets, count):
    return F.cross_entropy(F.linear(hidden, head).float(), targets, reduction="sum") / count


def negative_entropy(hidden, head, targets, count):
    log_p = F.log_softmax(F.linear(hidden, head).float(), -1)
    return (log_p.exp() * log_p).sum() / count


def teacher_divergence(hidden, head, teacher_hidden, teacher_head, count):
    log_p = F.log_softmax(F.linear(hidden, head).float(), -1)
    with torch.no_grad():
        log_q = F.log_softmax(F.linear(teacher_hidden, teacher_head).float(), -1)
    return F.kl_div(log_p, log_q, reduction="sum", log_target=True) / count
