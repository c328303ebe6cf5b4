//! Which member of a group owns which partitions, for the drivers that balance by themselves.

use std::collections::{BTreeMap, BTreeSet};

/// Maps each member to the partitions that it says it owns.
pub type View = BTreeMap<String, BTreeSet<u32>>;

/// Version of [`assign`]: members of one group that compute targets by different versions would not agree.
pub const ASSIGN_VERSION: u32 = 1;

/// Computes who should own what: counts differ by at most one, owners keep what they have, and only the surplus moves.
///
/// It is pure and deterministic: members with the same view compute the same targets, and a balanced view is its own
/// target. A partition that two members claim stays with the first of them by name until one of them has let go.
///
/// ```
/// use std::collections::BTreeSet;
/// use mq_api::assign::{View, assign};
///
/// let view: View = [("a".to_owned(), BTreeSet::from([0, 1])), ("b".to_owned(), BTreeSet::new())].into();
/// let target = assign(2, &view);
/// assert_eq!(target["a"].len(), 1);
/// assert_eq!(target["b"].len(), 1);
/// ```
#[must_use]
pub fn assign(partitions: u32, view: &View) -> View {
    let members = u32::try_from(view.len()).unwrap_or(u32::MAX);
    if members == 0 {
        return View::new();
    }
    let mut owner = BTreeMap::new();
    let mut kept: View = View::new();
    for (member, owned) in view {
        let mine = owned
            .iter()
            .copied()
            .filter(|p| *p < partitions && owner.insert(*p, member).is_none());
        kept.insert(member.clone(), mine.collect());
    }
    // Those who own most get the quotas that are one larger, so that fewer partitions move.
    let mut by_load: Vec<&String> = view.keys().collect();
    by_load.sort_by_key(|member| {
        (
            std::cmp::Reverse(kept.get(*member).map_or(0, BTreeSet::len)),
            *member,
        )
    });
    let (low, extra) = (partitions / members, (partitions % members) as usize);
    let quota: BTreeMap<&String, usize> = by_load
        .into_iter()
        .enumerate()
        .map(|(rank, member)| (member, low as usize + usize::from(rank < extra)))
        .collect();
    let quota_of = |member: &String| quota.get(member).copied().unwrap_or(0);

    for (member, mine) in &mut kept {
        while mine.len() > quota_of(member) {
            if let Some(surplus) = mine.pop_last() {
                owner.remove(&surplus);
            }
        }
    }
    let mut free = (0..partitions).filter(|p| !owner.contains_key(p));
    let mut target = kept;
    for (member, mine) in &mut target {
        let missing = quota_of(member) - mine.len();
        mine.extend(free.by_ref().take(missing));
    }
    target
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn view(members: &[(&str, &[u32])]) -> View {
        members
            .iter()
            .map(|(name, owned)| ((*name).to_owned(), owned.iter().copied().collect()))
            .collect()
    }

    fn counts(view: &View) -> Vec<usize> {
        view.values().map(BTreeSet::len).collect()
    }

    #[test]
    fn a_join_moves_only_the_surplus() {
        let three = assign(12, &view(&[("a", &[]), ("b", &[]), ("c", &[])]));
        assert_eq!(counts(&three), [4, 4, 4]);
        let mut joined = three.clone();
        joined.insert("d".to_owned(), BTreeSet::new());
        let four = assign(12, &joined);
        assert_eq!(counts(&four), [3, 3, 3, 3]);
        for member in ["a", "b", "c"] {
            assert!(four[member].is_subset(&three[member]));
        }
    }

    #[test]
    fn four_partitions_over_three_members_leave_nobody_idle() {
        assert_eq!(
            counts(&assign(4, &view(&[("a", &[0, 1]), ("b", &[2, 3]), ("c", &[])]))),
            [2, 1, 1]
        );
    }

    #[test]
    fn nobody_gets_nothing_of_an_empty_group() {
        assert!(assign(4, &View::new()).is_empty());
        assert_eq!(counts(&assign(0, &view(&[("a", &[3])]))), [0]);
    }

    proptest! {
        #[test]
        fn targets_are_complete_balanced_stable_and_move_the_least(
            partitions in 0u32..40,
            owned in proptest::collection::vec(proptest::collection::btree_set(0u32..50, 0..20), 1..12),
        ) {
            let view: View = owned.into_iter().enumerate().map(|(i, set)| (format!("m{i:02}"), set)).collect();
            let target = assign(partitions, &view);
            let counts = counts(&target);
            let all: BTreeSet<u32> = target.values().flatten().copied().collect();
            prop_assert_eq!(counts.iter().sum::<usize>(), partitions as usize);
            prop_assert_eq!(all, (0..partitions).collect::<BTreeSet<_>>());
            prop_assert!(counts.iter().max().unwrap() - counts.iter().min().unwrap() <= 1);
            prop_assert_eq!(&assign(partitions, &target), &target);

            // The naive model of what must move: with the quotas given out to the largest owners first, everything
            // above its owner's quota, and nothing else.
            let mut seen = BTreeSet::new();
            let mut sizes: Vec<usize> = view.values()
                .map(|set| set.iter().filter(|p| **p < partitions && seen.insert(**p)).count()).collect();
            sizes.sort_unstable_by(|a, b| b.cmp(a));
            let (low, extra) = (partitions as usize / sizes.len(), partitions as usize % sizes.len());
            let stay: usize = sizes.iter().enumerate().map(|(i, n)| (*n).min(low + usize::from(i < extra))).sum();
            let stayed: usize = view.iter().map(|(m, set)| set.intersection(&target[m]).count()).sum();
            prop_assert!(stayed >= stay, "{} stayed, {} could", stayed, stay);
        }
    }
}
