//! Rules over callers and targets.

use std::sync::Arc;

use super::*;
use crate::caller::{RoleLevel, Scope};
use crate::error::Error;

fn caller(scope: Scope, role: RoleLevel) -> Caller {
    Caller { user_id: "u".into(), scope, role: Some(role), ..Caller::default() }
}

fn of(project: &str, role: RoleLevel) -> Caller {
    caller(Scope::Project(project.into()), role)
}

/// Whether one rule alone allows it.
fn says(check: &str, caller: &Caller, keys: &[(&str, &str)]) -> bool {
    let policy = Policy::parse(&format!("\"x\": \"{check}\"\n")).unwrap();
    policy.allows("x", Default::Admin, caller, &Target::of(keys))
}

#[test]
fn strangers_see_nothing_and_readers_change_nothing() {
    let stranger = require_write(&of("b", RoleLevel::Member), "a", "x", "Image", "1");
    assert!(matches!(stranger, Err(Error::NotFound { .. })));
    let reader = require_write(&of("a", RoleLevel::Reader), "a", "x", "Image", "1");
    assert!(matches!(reader, Err(Error::Forbidden { .. })));
    assert!(require_write(&of("b", RoleLevel::Admin), "a", "x", "Image", "1").is_ok());
    assert!(require_own_project(&of("a", RoleLevel::Reader), "x").is_err());
    assert!(require_admin(&of("a", RoleLevel::Manager), "x").is_err());
    assert!(require_admin(&of("a", RoleLevel::Admin), "x").is_ok());
}

#[test]
fn what_another_project_has_is_not_there_whatever_a_file_says() {
    let ruled =
        |text: &str, caller: Caller| Caller { policy: Arc::new(Policy::parse(text).unwrap()), ..caller };
    let read = |caller: &Caller| require_read(caller, ("a", Some("u")), "x:get", "Thing", "1");
    let (open, closed) = ("'x:get': ''\n'x:get_all': ''", "'x:get': '!'\n'x:get_all': '!'");
    assert!(read(&of("a", RoleLevel::Reader)).is_ok());
    assert!(require_list(&of("a", RoleLevel::Reader), "x:get_all").is_ok());
    for text in ["", open, closed] {
        let stranger = read(&ruled(text, of("b", RoleLevel::Manager)));
        assert!(matches!(stranger, Err(Error::NotFound { .. })), "{text}");
    }
    for role in [RoleLevel::Reader, RoleLevel::Admin] {
        let hidden = ruled(closed, of("a", role));
        assert!(matches!(read(&hidden), Err(Error::Forbidden { action: "x:get" })));
        assert!(matches!(require_list(&hidden, "x:get_all"), Err(Error::Forbidden { action: "x:get_all" })));
    }
    // By default it takes a role, which a file may make another.
    let plain = Caller { role: None, roles: vec!["auditor".into()], ..of("a", RoleLevel::Reader) };
    assert!(matches!(read(&plain), Err(Error::Forbidden { .. })));
    assert!(require_list(&plain, "x:get_all").is_err());
    assert!(read(&ruled("'x:get': 'role:auditor and user_id:%(user_id)s'", plain)).is_ok());
    assert!(require_list(&caller(Scope::Unscoped, RoleLevel::Reader), "x:get_all").is_err());
}

#[test]
fn operators_bind_as_in_python() {
    let member = of("p", RoleLevel::Member);
    let target = [("project_id", "p"), ("user_id", "v"), ("shared", "True")];
    for (check, wanted) in [
        ("", true),
        ("@", true),
        ("!", false),
        ("role:member", true),
        ("role:Member", true),
        ("role:reader", true),
        ("role:admin", false),
        ("role:nonsense", false),
        ("not role:admin", true),
        ("NOT role:member OR @", true),
        ("role:admin or role:reader and role:member", true),
        ("(role:member or role:admin) and role:admin", false),
        ("role:member or role:admin and role:admin", true),
        ("not (role:admin or role:manager)", true),
        ("project_id:%(project_id)s", true),
        ("project_id:%(target.project.id)s", true),
        ("tenant_id:%(tenant_id)s", true),
        ("user_id:%(user_id)s", false),
        ("user_id:%(absent)s", false),
        ("user_id:u", true),
        ("'p':%(project_id)s", true),
        ("True:%(shared)s", true),
        ("field:networks:shared=True", true),
        ("field:networks:shared=False", false),
        ("is_admin:True", false),
        ("is_admin:False", true),
        ("system_scope:all", false),
        ("rule:project_member_api", true),
        ("rule:admin_api or (rule:project_reader_api)", true),
    ] {
        assert_eq!(says(check, &member, &target), wanted, "{check}");
    }
    assert!(says("role:reader and system_scope:all", &caller(Scope::System, RoleLevel::Reader), &[]));
    assert!(says(
        "domain_id:%(target.user.domain_id)s",
        &caller(Scope::Domain("d".into()), RoleLevel::Manager),
        &[("domain_id", "d")]
    ));
}

#[test]
fn a_file_overrides_a_rule_and_leaves_the_others() {
    let text = "# only managers\n\"os_compute_api:servers:create\": \"role:manager and rule:project_member_api\"\n\
                'identity:list_users': ''\nold: [[\"role:manager\", \"is_admin:False\"], \"role:admin\"]\n";
    let policy = Policy::parse(text).unwrap();
    let target = Target::of(&[("project_id", "p")]);
    let allows = |rule: &str, role| policy.allows(rule, Default::Member, &of("p", role), &target);
    assert!(!allows("os_compute_api:servers:create", RoleLevel::Member));
    assert!(allows("os_compute_api:servers:create", RoleLevel::Manager));
    assert!(allows("os_compute_api:servers:delete", RoleLevel::Member));
    assert!(allows("identity:list_users", RoleLevel::Reader));
    assert!(
        !allows("old", RoleLevel::Member)
            && allows("old", RoleLevel::Manager)
            && allows("old", RoleLevel::Admin)
    );
    assert_eq!(Policy::parse("# nothing\n").unwrap(), Policy::default());
}

#[test]
fn what_cannot_be_read_says_its_line() {
    for (text, wanted) in [
        ("a: 'role:x'\nb: 'role:'\n", "line 2: rule b"),
        ("a: '(role:x'", "line 1: rule a"),
        ("a: 'role:x role:y'", "line 1: rule a"),
        ("a: 'not'", "line 1: rule a"),
        ("a: 'http://server/%(x)s'", "line 1: rule a"),
        ("\n\na: 'rule:b'\n", "line 3: rule a names the rule b"),
        ("a: 'rule:b'\nb: 'not rule:a'\n", "names itself"),
        ("a: {b: c}", "no YAML of names"),
        ("- a", "no YAML of names"),
    ] {
        let error = Policy::parse(text).unwrap_err().to_string();
        assert!(error.contains(wanted), "{text}: {error}");
    }
}

#[test]
fn no_file_makes_evaluation_long() {
    let deep = format!("a: '{}role:x{}'", "(".repeat(100), ")".repeat(100));
    assert!(Policy::parse(&deep).is_err());
    let mut doubling = String::from("r0: 'role:x'\n");
    for n in 1..40 {
        doubling.push_str(&format!("r{n}: 'rule:r{m} or rule:r{m}'\n", m = n - 1));
    }
    assert!(matches!(Policy::parse(&doubling), Err(PolicyError::Endless { .. })));
    assert!(matches!(Policy::parse(&"#".repeat(FILE_BYTES_MAX + 1)), Err(PolicyError::Long)));
    let long = format!("a: '{}'", "role:x or ".repeat(1000) + "role:x");
    assert!(Policy::parse(&long).unwrap_err().to_string().contains("line 1"));
}
