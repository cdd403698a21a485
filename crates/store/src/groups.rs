//! Parallel work within a memory budget.

use rayon::prelude::*;

/// Runs `f` for the index of every item, in parallel within groups whose `sizes` sum to at most `budget`, largest first. An
/// item that is larger than `budget` is a group of its own. Results are in the order of the items.
///
/// # Errors
/// Returns the first error of `f`; later groups are not begun.
pub fn in_groups<T: Send, E: Send>(
    sizes: &[u64],
    budget: u64,
    f: impl Fn(usize) -> Result<T, E> + Sync,
) -> Result<Vec<T>, E> {
    let mut done = Vec::with_capacity(sizes.len());
    for group in groups(sizes, budget) {
        done.extend(group.into_par_iter().map(|i| Ok((i, f(i)?))).collect::<Result<Vec<(usize, T)>, E>>()?);
    }
    done.sort_by_key(|(i, _)| *i);
    Ok(done.into_iter().map(|(_, result)| result).collect())
}

fn groups(sizes: &[u64], budget: u64) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..sizes.len()).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(sizes[i]), i));
    let mut groups: Vec<Vec<usize>> = Vec::new();
    let mut filled = u64::MAX;
    for i in order {
        if filled.saturating_add(sizes[i]) > budget {
            groups.push(Vec::new());
            filled = 0;
        }
        filled += sizes[i];
        groups.last_mut().expect("a group was just pushed").push(i);
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_keep_to_the_budget_and_have_everything_once() {
        let sizes = [3, 50, 4, 4, 1, 9, 2];
        let found = groups(&sizes, 10);
        assert_eq!(found[0], [1], "what is larger than the budget is alone");
        assert!(found[1..].iter().all(|g| g.iter().map(|&i| sizes[i]).sum::<u64>() <= 10));
        let mut all = found.concat();
        all.sort_unstable();
        assert_eq!(all, [0, 1, 2, 3, 4, 5, 6]);
        assert!(groups(&[], 10).is_empty());
        let squares = in_groups(&sizes, 10, |i| Ok::<_, ()>(i * i)).unwrap();
        assert_eq!(squares, [0, 1, 4, 9, 16, 25, 36], "in the items' order");
        assert_eq!(in_groups(&sizes, 10, |i| if i == 4 { Err(i) } else { Ok(()) }), Err(4));
    }
}
