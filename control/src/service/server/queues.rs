//! How many pairs of queues a server's network devices have: one, or as many as it has processors up to
//! [`vmm::virtio::net::PAIRS_MAX`], where its flavor's extra spec `hw:vif_multiqueue_enabled` or its image's property
//! `hw_vif_multiqueue_enabled` says so (Nova: extra specs, `hw`; Glance: useful image properties). What holds is what the server has of both since it
//! was made.

use std::collections::BTreeMap;

use vmm::virtio::net::pairs_for;

use crate::boolean;
use crate::model::compute::Server;

/// In a flavor's extra specs.
const EXTRA_SPEC: &str = "hw:vif_multiqueue_enabled";
/// In an image's properties.
const PROPERTY: &str = "hw_vif_multiqueue_enabled";

/// The number of pairs of each of a server's network devices. What cannot be read says nothing.
pub(crate) fn pairs_of(server: &Server) -> u16 {
    let wishes = [
        server.flavor.extra_specs.get(EXTRA_SPEC).map(String::as_str),
        server.image_properties.get(PROPERTY).map(String::as_str),
    ];
    if !wishes.into_iter().flatten().any(|wish| boolean::from_text(wish) == Some(true)) {
        return 1;
    }
    pairs_for(u8::try_from(server.flavor.vcpus).unwrap_or(u8::MAX))
}

/// Checks an extra spec of a flavor, if it is this one.
///
/// # Errors
/// It is no boolean, in one sentence.
pub(crate) fn check_extra_spec(key: &str, value: &str) -> Result<(), String> {
    if key != EXTRA_SPEC || boolean::from_text(value).is_some() {
        return Ok(());
    }
    Err(format!("Invalid input for field/attribute {key}: '{value}' is not a boolean."))
}

/// Checks that a flavor and an image do not say the contrary of each other, as Nova does.
///
/// # Errors
/// They do, in one sentence.
pub(crate) fn check_agreement(
    extra_specs: &BTreeMap<String, String>,
    properties: &BTreeMap<String, String>,
) -> Result<(), String> {
    let (Some(flavor), Some(image)) = (extra_specs.get(EXTRA_SPEC), properties.get(PROPERTY)) else {
        return Ok(());
    };
    match (boolean::from_text(flavor), boolean::from_text(image)) {
        (Some(flavors), Some(images)) if flavors != images => Err(format!(
            "The flavor has the extra spec {EXTRA_SPEC} set to '{flavor}', conflicting with the image, which has the property \
             {PROPERTY} set to '{image}'."
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::server::test::server;

    fn one(key: &str, value: &str) -> BTreeMap<String, String> {
        BTreeMap::from([(key.to_owned(), value.to_owned())])
    }

    #[test]
    fn there_is_a_pair_for_each_processor_up_to_eight_if_flavor_or_image_says_so() {
        let mut server = server();
        server.flavor.vcpus = 2;
        assert_eq!(pairs_of(&server), 1);
        server.flavor.extra_specs = one(EXTRA_SPEC, "True");
        assert_eq!(pairs_of(&server), 2);
        server.flavor.vcpus = 12;
        assert_eq!(pairs_of(&server), 8);
        server.flavor.extra_specs = one(EXTRA_SPEC, "false");
        assert_eq!(pairs_of(&server), 1);
        server.flavor.extra_specs.clear();
        server.image_properties = one(PROPERTY, "yes");
        assert_eq!(pairs_of(&server), 8);
        server.flavor.vcpus = 1;
        assert_eq!(pairs_of(&server), 1);
        server.image_properties = one(PROPERTY, "many");
        server.flavor.vcpus = 2;
        assert_eq!(pairs_of(&server), 1);
    }

    #[test]
    fn what_is_no_boolean_and_what_contradicts_is_refused() {
        assert!(check_extra_spec(EXTRA_SPEC, "maybe").unwrap_err().contains("'maybe' is not a boolean"));
        for (key, value) in [(EXTRA_SPEC, "on"), ("hw:other", "maybe")] {
            assert_eq!(check_extra_spec(key, value), Ok(()));
        }
        let agrees = |flavor: &str, image: &str| {
            check_agreement(&one(EXTRA_SPEC, flavor), &one(PROPERTY, image)).is_ok()
        };
        assert!(agrees("true", "1") && agrees("no", "False") && agrees("true", "?"));
        assert!(!agrees("true", "false") && !agrees("0", "on"));
        assert_eq!(check_agreement(&BTreeMap::new(), &one(PROPERTY, "true")), Ok(()));
    }
}
