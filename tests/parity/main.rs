//! Parity with the reference folders of `tests/fixtures`, which PyTorch, Transformers, PEFT and the TAR authors' own loop
//! have computed.

mod model;
mod reference;
mod tar;
