//! What the command line of `borealis` is made of: the declaration from which the program reads its arguments and
//! from which its manual pages and completions are made. Everything else is the program's own.

pub mod args;
