//! Base backups and drills take turns: a drill never runs beside a base backup. A base backup waits for a drill
//! for a while; then the drill is given up, since what is protected goes before what is tried.

use std::time::Duration;

use tokio::sync::{Mutex, MutexGuard, watch};

/// Whose turn it is.
pub struct Turns {
    turn: Mutex<()>,
    wanted: watch::Sender<bool>,
}

impl Default for Turns {
    fn default() -> Self {
        Self {
            turn: Mutex::new(()),
            wanted: watch::Sender::new(false),
        }
    }
}

/// A turn; it ends when this is dropped.
pub type Turn<'a> = MutexGuard<'a, ()>;

impl Turns {
    /// Waits for the turn of a base backup, at most `patience` for a drill that runs, which is given up then.
    pub async fn base_backup(&self, patience: Duration) -> Turn<'_> {
        if let Ok(turn) = tokio::time::timeout(patience, self.turn.lock()).await {
            return turn;
        }
        self.wanted.send_replace(true);
        let turn = self.turn.lock().await;
        self.wanted.send_replace(false);
        turn
    }

    /// The turn of a drill, if no base backup has it now.
    pub fn drill(&self) -> Option<Turn<'_>> {
        self.turn.try_lock().ok()
    }

    /// Returns when a base backup waits no longer.
    pub async fn wanted(&self) {
        let mut wanted = self.wanted.subscribe();
        // The sender lives as long as this does.
        let _ = wanted.wait_for(|wanted| *wanted).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::timeout;

    #[tokio::test(start_paused = true)]
    async fn a_drill_is_given_up_once_a_base_backup_has_waited_long_enough() {
        let turns = Turns::default();
        let drill = turns.drill().expect("nobody else is there");
        assert!(turns.drill().is_none());
        let (early, patience) = (Duration::from_secs(59), Duration::from_secs(60));
        let base_backup = async {
            let _turn = turns.base_backup(patience).await;
        };
        let drill = async {
            assert!(timeout(early, turns.wanted()).await.is_err());
            let late = timeout(Duration::from_secs(2), turns.wanted()).await;
            late.expect("it is to be given up by now");
            drop(drill);
        };
        tokio::join!(base_backup, drill);
        // The next drill is not asked to end.
        let next = turns.drill().expect("the base backup has ended");
        assert!(timeout(patience, turns.wanted()).await.is_err());
        drop(next);
    }
}
