//! What the appliance answers itself when it poses as a vCenter.

use super::element::{Element, Moref};
use super::request::service_instance;

/// The session manager's id here.
pub fn session_manager() -> Moref {
    Moref::new("SessionManager", "SessionManager")
}

/// The property collector's id here.
pub fn property_collector() -> Moref {
    Moref::new("PropertyCollector", "propertyCollector")
}

/// `ServiceContent`: what there is, and which API. Nothing of the inventory can be reached from here, so the root folder is a
/// name only.
pub fn service_content(name: &str) -> Element {
    let about = Element::new("about")
        .has("name", "VMware vCenter Server")
        .has("fullName", "VMware vCenter Server 8.0.0 (console gate)")
        .has("vendor", "VMware, Inc.")
        .has("version", "8.0.0")
        .has("build", "0")
        .has("localeVersion", "INTL")
        .has("localeBuild", "000")
        .has("osType", "linux-x64")
        .has("productLineId", "vpx")
        .has("apiType", "VirtualCenter")
        .has("apiVersion", "8.0.0.0");
    Element::new(name)
        .with(Element::of("rootFolder", &Moref::new("Folder", "group-d1")))
        .with(Element::of("propertyCollector", &property_collector()))
        .with(about)
        .with(Element::of("sessionManager", &session_manager()))
}

/// The answer to an operation that returns nothing.
pub fn nothing(operation: &str) -> Element {
    Element::new(format!("{operation}Response"))
}

/// The answer to an operation that returns this.
pub fn returns(operation: &str, value: Element) -> Element {
    nothing(operation).with(value)
}

/// `UserSession`. `since` is `xsd:dateTime`.
pub fn user_session(name: &str, key: &str, user: &str, since: &str) -> Element {
    Element::new(name)
        .has("key", key)
        .has("userName", user)
        .has("fullName", user)
        .has("loginTime", since)
        .has("lastActiveTime", since)
        .has("locale", "en")
        .has("messageLocale", "en")
        .has("extensionSession", "false")
        .has("ipAddress", "")
        .has("userAgent", "")
        .has("callCount", "0")
}

/// `xsd:dateTime` of a moment, UTC, from seconds since the Unix epoch.
pub fn date_time(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Civil from days (Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms").
    let z = days as i64 + 719_468;
    let era = z.div_euclid(146_097);
    let of_era = z.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let day_of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let (day, month) =
        (day_of_year - (153 * shifted + 2) / 5 + 1, if shifted < 10 { shifted + 3 } else { shifted - 9 });
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

/// The answer to a read that the appliance knows itself: `Fetch`, or one property through the collector.
pub fn fetched(operation: &str, object: &Moref, property: &str, value: Element, kind: &str) -> Element {
    if operation == "Fetch" {
        return returns(operation, Element { name: "returnval".into(), ..value }.typed(kind));
    }
    let set = Element::new("propSet")
        .has("name", property)
        .with(Element { name: "val".into(), ..value }.typed(kind));
    let content = Element::of("obj", object);
    if operation == "RetrieveProperties" {
        return returns(operation, Element::new("returnval").with(content).with(set));
    }
    returns(operation, Element::new("returnval").with(Element::new("objects").with(content).with(set)))
}

/// What a client asks for: the object and the property, where it asks for one property of one object.
pub fn one_property(operation: &Element) -> Option<(Moref, &str)> {
    if operation.name == "Fetch" {
        return Some((operation.child("_this")?.as_moref()?, operation.child_text("prop")?));
    }
    let spec = operation.child("specSet")?;
    let object = spec.child("objectSet")?.child("obj")?.as_moref()?;
    let mut paths = spec.child("propSet")?.all("pathSet");
    match (paths.next(), paths.next()) {
        (Some(path), None) => Some((object, path.text.as_str())),
        _ => None,
    }
}

/// `content` of the service instance.
pub fn is_service_content(object: &Moref, property: &str) -> bool {
    *object == service_instance() && property == "content"
}

/// `currentSession` of the session manager.
pub fn is_current_session(object: &Moref, property: &str) -> bool {
    object.kind == "SessionManager" && property == "currentSession"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_written_as_xml_schema_has_them() {
        assert_eq!(date_time(0), "1970-01-01T00:00:00Z");
        assert_eq!(date_time(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(date_time(1_709_210_096), "2024-02-29T12:34:56Z");
        assert_eq!(date_time(4_102_444_799), "2099-12-31T23:59:59Z");
    }
}
