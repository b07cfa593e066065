//! Images made of parts of others.

use std::io;
use std::ops::Range;

use crate::boot::image::Image;

/// Initial ramdisks follow each other at multiples of this, as boot loaders place them and Linux expects.
const ALIGNMENT: u64 = 4;

/// A range of an image.
pub(super) struct Part {
    image: Box<dyn Image>,
    range: Range<u64>,
}

impl Part {
    /// All of `image`; one whose size cannot be told is empty.
    pub(super) fn whole(image: Box<dyn Image>) -> Self {
        let size = image.size_bytes().unwrap_or(0);
        Self { image, range: 0..size }
    }

    /// The bytes `range` of `image`.
    pub(super) fn of(image: Box<dyn Image>, range: Range<u64>) -> Self {
        Self { image, range }
    }

    fn size_bytes(&self) -> u64 {
        self.range.end.saturating_sub(self.range.start)
    }
}

/// Parts one behind the other, with zeros up to the alignment between them.
pub(super) struct Concatenation {
    /// Each with the place where it begins.
    parts: Vec<(u64, Part)>,
    size_bytes: u64,
}

impl Concatenation {
    pub(super) fn new(parts: Vec<Part>) -> Self {
        let mut placed = Vec::with_capacity(parts.len());
        let mut end = 0_u64;
        for part in parts {
            let start = end.next_multiple_of(ALIGNMENT);
            end = start + part.size_bytes();
            placed.push((start, part));
        }
        Self { parts: placed, size_bytes: end }
    }
}

impl Image for Concatenation {
    fn size_bytes(&self) -> io::Result<u64> {
        Ok(self.size_bytes)
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let end = offset.checked_add(buffer.len() as u64).filter(|&end| end <= self.size_bytes);
        let Some(end) = end else { return Err(io::ErrorKind::UnexpectedEof.into()) };
        buffer.fill(0);
        for (start, part) in &self.parts {
            let (from, to) = (offset.max(*start), end.min(start + part.size_bytes()));
            if from < to {
                let within =
                    |place: u64| usize::try_from(place - offset).expect("invariant: within the buffer");
                let target = &mut buffer[within(from)..within(to)];
                part.image.read_exact_at(target, part.range.start + (from - start))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_follow_each_other_aligned() {
        let part = |bytes: &'static [u8], range| Part::of(Box::new(bytes), range);
        let image = Concatenation::new(vec![part(b"abcde", 0..5), part(b"xyz", 1..3), part(b"", 0..0)]);
        let mut bytes = vec![1; usize::try_from(image.size_bytes().unwrap()).unwrap()];
        image.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(bytes, b"abcde\0\0\0yz\0\0");
        let mut middle = [0; 6];
        image.read_exact_at(&mut middle, 3).unwrap();
        assert_eq!(&middle, b"de\0\0\0y");
        assert!(image.read_exact_at(&mut [0; 2], 11).is_err());
    }
}
