//! The files with which the administrator reaches the cloud, and the password in them.
//!
//! Must never know: how a password is checked or kept.

use std::path::Path;

/// The environment variable that names the administrator's password.
pub const PASSWORD_VARIABLE: &str = "WISP_ADMIN_PASSWORD";

/// The administrator's password: as the environment says, else as the cloud's own file says from before, else new.
pub fn password(clouds_yaml: &Path) -> String {
    if let Ok(password) = std::env::var(PASSWORD_VARIABLE)
        && !password.is_empty()
    {
        return password;
    }
    let before = std::fs::read_to_string(clouds_yaml).ok();
    before.and_then(|text| password_in(&text)).unwrap_or_else(|| uuid::Uuid::new_v4().simple().to_string())
}

/// The password in a file that [`clouds_yaml`] made.
fn password_in(text: &str) -> Option<String> {
    let value = text.lines().find_map(|line| line.trim().strip_prefix("password: "))?;
    serde_json::from_str(value).ok()
}

/// `clouds.yaml` with one cloud, `wisp`.
pub fn clouds_yaml(public_url: &str, password: &str, authority: Option<&Path>) -> String {
    // JSON's strings are YAML's double-quoted ones.
    let quoted = serde_json::Value::from(password);
    let authority = authority.map_or_else(String::new, |path| {
        format!("\x20   cacert: {}\n", serde_json::Value::from(path.to_string_lossy()))
    });
    format!(
        "clouds:\n\
         \x20 wisp:\n\
         \x20   auth:\n\
         \x20     auth_url: {public_url}/identity\n\
         \x20     username: admin\n\
         \x20     password: {quoted}\n\
         \x20     project_name: admin\n\
         \x20     user_domain_name: Default\n\
         \x20     project_domain_name: Default\n\
         \x20   region_name: RegionOne\n\
         \x20   identity_api_version: 3\n\
         \x20   interface: public\n{authority}"
    )
}

/// The same as variables for a shell.
pub fn openrc(public_url: &str, password: &str, authority: Option<&Path>) -> String {
    let quoted = password.replace('\'', r"'\''");
    let authority = authority.map_or_else(String::new, |path| {
        format!("export OS_CACERT='{}'\n", path.to_string_lossy().replace('\'', r"'\''"))
    });
    format!(
        "export OS_AUTH_URL='{public_url}/identity'\n\
         export OS_USERNAME=admin\n\
         export OS_PASSWORD='{quoted}'\n\
         export OS_PROJECT_NAME=admin\n\
         export OS_USER_DOMAIN_NAME=Default\n\
         export OS_PROJECT_DOMAIN_NAME=Default\n\
         export OS_REGION_NAME=RegionOne\n\
         export OS_IDENTITY_API_VERSION=3\n\
         export OS_INTERFACE=public\n{authority}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn password_is_found_again_in_the_file_whatever_it_holds() {
        for password in ["simple", "with \"quotes\" and \\", "ü: # ' {", "line\nbreak"] {
            let text = clouds_yaml("http://127.0.0.1:5000", password, None);
            assert_eq!(password_in(&text).as_deref(), Some(password));
        }
    }

    #[test]
    fn quote_in_a_password_does_not_leave_the_shell_string() {
        let text = openrc("http://127.0.0.1:5000", "a'b;c", Some(Path::new("/c/ca.pem")));
        assert!(text.ends_with("export OS_CACERT='/c/ca.pem'\n"), "{text}");
        assert!(text.contains(r"export OS_PASSWORD='a'\''b;c'"), "{text}");
    }
}
