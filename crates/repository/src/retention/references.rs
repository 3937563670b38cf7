//! What a plan for a lineage rests on besides its own ledger: the catalog, and other lineages.

use std::collections::BTreeSet;

use borealis_base::{LineageId, Timestamp};

use super::terms::{Child, Policy, Terms, standing};
use crate::catalog::{Cluster, Lineage, LineageRecord};
use crate::plan::{LineageState, windows};
use crate::{Error, Repository, Result};

impl Repository {
    /// Reads the terms of `lineage` of `cluster`. `newer` are the states of the lineages entered after it.
    pub async fn terms(
        &self,
        cluster: &Cluster,
        lineage: LineageId,
        state: &LineageState,
        newer: &[LineageState],
        now: Timestamp,
    ) -> Result<Terms> {
        Ok(Terms {
            policy: Policy::of(cluster),
            standing: standing(cluster, lineage, state, newer, now),
            holds: cluster.holds.clone(),
            children: self.children(lineage).await?,
        })
    }

    /// As [`Self::terms`], of a lineage of whatever cluster has it, retired or not.
    pub async fn terms_of(
        &self,
        lineage: LineageId,
        state: &LineageState,
        now: Timestamp,
    ) -> Result<Terms> {
        let clusters = self.clusters().await?;
        let has = |cluster: &&Cluster| cluster.lineages.iter().any(|it| it.lineage == lineage);
        let cluster = clusters.iter().find(has).ok_or_else(|| Error::NotFound {
            what: format!("lineage {lineage}"),
        })?;
        let after = (cluster.lineages.iter()).skip_while(|it| it.lineage != lineage);
        let mut newer = Vec::new();
        for record in after.skip(1) {
            newer.push(self.lineage(record.lineage).await?.load_state().await?);
        }
        self.terms(cluster, lineage, state, &newer, now).await
    }

    /// Lineages born of `parent` that can't be restored from their own base backups yet.
    async fn children(&self, parent: LineageId) -> Result<Vec<Child>> {
        let born = |record: &LineageRecord| record.parent.filter(|it| it.lineage == parent);
        let mut children = Vec::new();
        for record in (self.clusters().await?.iter()).flat_map(|cluster| &cluster.lineages) {
            let Some(birth) = born(record) else {
                continue;
            };
            let state = self.lineage(record.lineage).await?.load_state().await?;
            if windows(&state).is_empty() {
                children.push(Child {
                    lineage: record.lineage,
                    branch: birth.branch,
                    at: birth.at,
                });
            }
        }
        Ok(children)
    }

    /// The lineages born of `lineage`, and those born of these: their base backups may refer to its objects.
    pub async fn descendants(&self, lineage: LineageId) -> Result<Vec<Lineage>> {
        let clusters = self.clusters().await?;
        let records: Vec<&LineageRecord> = clusters.iter().flat_map(|it| &it.lineages).collect();
        let mut known = BTreeSet::from([lineage]);
        let mut descendants = Vec::new();
        loop {
            let born = records.iter().filter(|record| {
                let of_known = record.parent.is_some_and(|it| known.contains(&it.lineage));
                of_known && !known.contains(&record.lineage)
            });
            let born: Vec<LineageId> = born.map(|record| record.lineage).collect();
            if born.is_empty() {
                break;
            }
            for lineage in born {
                known.insert(lineage);
                descendants.push(self.lineage(lineage).await?);
            }
        }
        Ok(descendants)
    }
}
