//! Rows of numbered objects: pins, drills and scrubs.

use borealis_base::ObjectId;

use super::{is_damage, object_of};
use crate::catalog::Lineage;
use crate::numbered::EntryHead;
use crate::object::{ObjectKind, fetch_with};
use crate::{Error, Result, layout};

/// Reads and authenticates one entry of a row of numbered objects.
pub(super) async fn read_entry(
    lineage: &Lineage,
    name: &str,
    kind: ObjectKind,
    number: u64,
) -> Result<()> {
    let view = fetch_with(&**lineage.store(), lineage.keys(), name, kind)
        .await
        .map_err(|error| error.named_by(format!("the row of lineage {}", lineage.id())))?;
    let head = EntryHead::decode(view.head().clear())
        .ok_or_else(|| view.head().damaged("its entry head is malformed"))?;
    if head.number != number || head.owner != lineage.id().0 {
        return Err(view.head().damaged(format!(
            "it holds entry {} of {}",
            head.number,
            ObjectId(head.owner)
        )));
    }
    view.authenticate(lineage.keys())
}

/// Reads every entry of the logs of pins, drills and scrubs; returns what is wrong with those of drills and
/// scrubs that can't be read at all, too.
pub(crate) async fn wrong_in_rows(lineage: &Lineage) -> Result<Vec<(String, Error)>> {
    let mut wrong = Vec::new();
    let heads = [
        (
            ObjectKind::Pin,
            lineage.pins().await.map(|pins| pins.head()),
        ),
        (
            ObjectKind::Drill,
            lineage.drills().await.map(|drills| drills.head()),
        ),
        (
            ObjectKind::Scrub,
            lineage.scrubs().await.map(|scrubs| scrubs.head()),
        ),
    ];
    for (kind, head) in heads {
        let head = match head {
            Ok(head) => head,
            Err(error) if is_damage(&error) => {
                let object = object_of(&error).unwrap_or_else(|| layout::lineage(lineage.id()));
                wrong.push((object, error));
                continue;
            }
            Err(error) => return Err(error),
        };
        for number in 1..=head {
            let name = numbered_name(lineage, kind, number);
            match read_entry(lineage, &name, kind, number).await {
                Err(error) if is_damage(&error) => wrong.push((name, error)),
                other => other?,
            }
        }
    }
    Ok(wrong)
}

pub(super) fn numbered_name(lineage: &Lineage, kind: ObjectKind, number: u64) -> String {
    match kind {
        ObjectKind::Drill => layout::drill(lineage.id(), number),
        ObjectKind::Scrub => layout::scrub(lineage.id(), number),
        _ => layout::pin(lineage.id(), number),
    }
}
