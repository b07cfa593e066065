//! Comparing versions (UAPI.10, Version Format Specification).

use std::cmp::Ordering;

/// Which of two versions is newer.
pub(super) fn compare(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    loop {
        (a, b) = (relevant(a), relevant(b));
        // A tilde is older than nothing: 1~rc1 < 1.
        match (a.first() == Some(&b'~'), b.first() == Some(&b'~')) {
            (true, true) => {
                (a, b) = (&a[1..], &b[1..]);
                continue;
            }
            (true, false) => return Ordering::Less,
            (false, true) => return Ordering::Greater,
            (false, false) => {}
        }
        if a.is_empty() || b.is_empty() {
            return a.len().cmp(&b.len());
        }
        // Each of these is older than what goes on without it.
        let mut both = false;
        for separator in [b'-', b'^', b'.'] {
            match (a[0] == separator, b[0] == separator) {
                (true, true) => {
                    (a, b) = (&a[1..], &b[1..]);
                    both = true;
                    break;
                }
                (true, false) => return Ordering::Less,
                (false, true) => return Ordering::Greater,
                (false, false) => {}
            }
        }
        if both {
            continue;
        }
        let is_number = a[0].is_ascii_digit() || b[0].is_ascii_digit();
        let (part_a, part_b);
        (part_a, a) = part(a, is_number);
        (part_b, b) = part(b, is_number);
        let order = if is_number {
            part_a.len().cmp(&part_b.len()).then(part_a.cmp(part_b))
        } else {
            part_a.cmp(part_b)
        };
        if order != Ordering::Equal {
            return order;
        }
    }
}

/// Without what separates but says nothing.
fn relevant(text: &[u8]) -> &[u8] {
    let says = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'~' | b'-' | b'^' | b'.');
    let start = text.iter().position(says).unwrap_or(text.len());
    &text[start..]
}

/// The digits, without zeros before them, or the letters at the beginning, and what follows.
fn part(text: &[u8], is_number: bool) -> (&[u8], &[u8]) {
    let is_part = |byte: &u8| if is_number { byte.is_ascii_digit() } else { byte.is_ascii_alphabetic() };
    let end = text.iter().position(|byte| !is_part(byte)).unwrap_or(text.len());
    let (part, rest) = text.split_at(end);
    let zeros = part.iter().take_while(|byte| is_number && **byte == b'0').count();
    (&part[zeros..], rest)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn versions_are_ordered_as_people_mean_them() {
        let ascending =
            ["", "0", "5.9", "6.1~rc2", "6.1", "6.1.0-9-amd64", "6.1.0-10-amd64", "6.1.9", "6.12", "10"];
        for pair in ascending.windows(2).skip(1) {
            assert_eq!(compare(pair[0], pair[1]), Ordering::Less, "{pair:?}");
            assert_eq!(compare(pair[1], pair[0]), Ordering::Greater, "{pair:?}");
        }
        assert_eq!(compare("6.01", "6.1"), Ordering::Equal);
    }

    proptest! {
        #[test]
        fn order_is_antisymmetric_and_ends(a in "[0-9a-c.~^_-]{0,12}", b in "[0-9a-c.~^_-]{0,12}") {
            prop_assert_eq!(compare(&a, &b), compare(&b, &a).reverse());
            prop_assert_eq!(compare(&a, &a), Ordering::Equal);
        }
    }
}
