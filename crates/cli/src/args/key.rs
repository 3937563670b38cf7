//! The options of `borealis key`.

// The doc comments here are shown as they stand by `--help`.
#![allow(clippy::doc_markdown)]

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Subcommand};

/// `borealis key`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    borealis key list\n  \
    borealis key rotate --new-key aws-kms:alias/backup\n  \
    borealis key rotate --new-key file:/etc/borealis/keys/next.key --renew")]
pub struct Key {
    /// What to do.
    #[command(subcommand)]
    pub action: KeyAction,
}

/// `borealis key …`.
#[derive(Debug, Subcommand)]
pub enum KeyAction {
    /// List the keys that open the repository, and the data keys below them with their age
    #[command(after_help = "Example:\n  borealis key list")]
    List,
    /// Let one more key open the repository
    #[command(after_help = "Example:\n  borealis key add --new-key file:/mnt/safe/second.key")]
    Add(NewKey),
    /// Let a key open the repository no more
    #[command(after_help = "Example:\n  borealis key remove 269e291675acd47ba26282a2c0881c44")]
    Remove(KeyRemove),
    /// Put another key in the place of the one at hand: add it, see that it opens, remove the old one
    #[command(after_help = "Example:\n  borealis key rotate --new-key aws-kms:alias/backup")]
    Rotate(KeyRotate),
    /// Have the key at hand wrap the repository's key anew, with its service's newest version
    #[command(after_help = "Example:\n  borealis key rewrap")]
    Rewrap,
    /// Make every key below the root keys anew: what is sealed from now on opens with none known before
    #[command(after_help = "Example:\n  borealis key renew --recipient file:/mnt/safe/second.key")]
    Renew(OtherRecipients),
}

/// A key that comes.
#[derive(Debug, Args)]
pub struct NewKey {
    /// The key, as --key takes it; a key file is made if it does not exist
    #[arg(long, value_name = "URL", value_parser = NonEmptyStringValueParser::new())]
    pub new_key: String,
}

/// Keys that stay.
#[derive(Debug, Args)]
pub struct OtherRecipients {
    /// The key of another recipient that stays, as --key takes it; may be repeated
    #[arg(long, value_name = "URL", value_parser = NonEmptyStringValueParser::new())]
    pub recipient: Vec<String>,
}

/// Whether what is below is made anew.
#[derive(Debug, Args)]
pub struct Renewal {
    /// Make every key below the root keys anew, too: for a key that somebody else may have
    #[arg(long)]
    pub renew: bool,
    /// With --renew: the key of another recipient that stays, as --key takes it; may be repeated
    #[arg(long, value_name = "URL", requires = "renew", value_parser = NonEmptyStringValueParser::new())]
    pub recipient: Vec<String>,
}

/// `borealis key remove`.
#[derive(Debug, Args)]
pub struct KeyRemove {
    /// The key's id, as `key list` shows it
    #[arg(value_name = "KEY-ID")]
    pub key_id: String,
    /// What else.
    #[command(flatten)]
    pub renewal: Renewal,
}

/// `borealis key rotate`.
#[derive(Debug, Args)]
pub struct KeyRotate {
    /// The key that comes.
    #[command(flatten)]
    pub new_key: NewKey,
    /// What else.
    #[command(flatten)]
    pub renewal: Renewal,
}
