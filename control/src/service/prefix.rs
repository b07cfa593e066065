//! Sets of prefixes as pure functions: joined, taken away from each other, and the next free one of a length.

use ipnet::IpNet;

/// The same addresses in as few prefixes as can be, in order.
pub fn joined(prefixes: &[IpNet]) -> Vec<IpNet> {
    let mut joined = IpNet::aggregate(&prefixes.iter().map(IpNet::trunc).collect());
    joined.sort_unstable();
    joined
}

/// Whether they have addresses in common.
pub fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

/// What is left of `prefixes` without `taken`, in order. Each step halves a prefix that something taken lies in, so there
/// are at most as many as a prefix has bits for each of these.
pub fn without(prefixes: &[IpNet], taken: &[IpNet]) -> Vec<IpNet> {
    let mut left = Vec::new();
    let mut pending = joined(prefixes);
    while let Some(prefix) = pending.pop() {
        if !taken.iter().any(|other| overlap(other, &prefix)) {
            left.push(prefix);
        } else if !taken.iter().any(|other| other.contains(&prefix)) {
            // Something lies in it that is smaller, so it has two halves.
            pending.extend(prefix.subnets(prefix.prefix_len() + 1).into_iter().flatten());
        }
    }
    joined(&left)
}

/// The next free prefix of this length: of the smallest gap that it fits, the first, so that large ones stay whole.
pub fn next_free(prefixes: &[IpNet], taken: &[IpNet], length: u8) -> Option<IpNet> {
    let gaps = without(prefixes, taken);
    let fitting = gaps.iter().filter(|gap| gap.prefix_len() <= length);
    let gap = fitting.min_by_key(|gap| (std::cmp::Reverse(gap.prefix_len()), **gap))?;
    gap.subnets(length).ok()?.next()
}

/// Whether all of `prefix` is in `prefixes`, and none of it in `taken`.
pub fn is_free(prefixes: &[IpNet], taken: &[IpNet], prefix: &IpNet) -> bool {
    joined(prefixes).iter().any(|own| own.contains(prefix))
        && !taken.iter().any(|other| overlap(other, prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn prefixes_join_and_come_apart() {
        assert_eq!(
            joined(&nets(&["10.1.0.0/24", "10.0.0.0/24", "10.0.1.0/24"])),
            nets(&["10.0.0.0/23", "10.1.0.0/24"])
        );
        assert_eq!(
            without(&nets(&["10.0.0.0/22"]), &nets(&["10.0.1.0/24"])),
            nets(&["10.0.0.0/24", "10.0.2.0/23"])
        );
        assert!(without(&nets(&["10.0.0.0/24"]), &nets(&["10.0.0.0/8"])).is_empty());
        assert_eq!(without(&nets(&["10.0.0.0/24"]), &nets(&["11.0.0.0/8"])), nets(&["10.0.0.0/24"]));
        assert_eq!(without(&nets(&["::/0"]), &nets(&["::1/128"])).len(), 128);
    }

    #[test]
    fn next_free_prefix_leaves_large_gaps_whole_and_returns() {
        let pool = nets(&["10.0.0.0/16"]);
        let mut taken = Vec::new();
        for expected in ["10.0.0.0/26", "10.0.0.64/26", "10.0.0.128/26", "10.0.0.192/26", "10.0.1.0/26"] {
            let next = next_free(&pool, &taken, 26).unwrap();
            assert_eq!(next, net(expected));
            taken.push(next);
        }
        taken.remove(1);
        assert_eq!(next_free(&pool, &taken, 26), Some(net("10.0.0.64/26")));
        assert_eq!(next_free(&pool, &taken, 17), Some(net("10.0.128.0/17")));
        assert_eq!(next_free(&pool, &taken, 16), None);
        assert!(is_free(&pool, &taken, &net("10.0.9.0/24")));
        assert!(!is_free(&pool, &taken, &net("10.0.0.0/24")));
        assert!(!is_free(&pool, &taken, &net("10.1.0.0/24")));
    }
}
