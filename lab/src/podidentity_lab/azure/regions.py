"""Azure's regions, as `az account list-locations` and Terraform see them: a dozen of the public cloud's."""

from dataclasses import dataclass

from podidentity_lab.azure.state import Json


@dataclass(frozen=True, slots=True)
class Region:
    """A region: its name in requests, for people, its geography, its pair's name ("" without one), and where it is."""

    name: str
    display_name: str
    geography: str
    group: str
    pair: str
    latitude: str
    longitude: str


REGIONS = (
    Region("australiaeast", "Australia East", "Australia", "Asia Pacific", "", "-33.86", "151.2094"),
    Region("centralus", "Central US", "United States", "US", "eastus2", "41.5908", "-93.6208"),
    Region("eastus", "East US", "United States", "US", "westus", "37.3719", "-79.8164"),
    Region("eastus2", "East US 2", "United States", "US", "centralus", "36.6681", "-78.3889"),
    Region("francecentral", "France Central", "France", "Europe", "", "46.3772", "2.373"),
    Region("germanywestcentral", "Germany West Central", "Germany", "Europe", "", "50.110924", "8.682127"),
    Region("northeurope", "North Europe", "Europe", "Europe", "westeurope", "53.3478", "-6.2597"),
    Region("southeastasia", "Southeast Asia", "Asia Pacific", "Asia Pacific", "", "1.283", "103.833"),
    Region("swedencentral", "Sweden Central", "Sweden", "Europe", "", "60.67488", "17.14127"),
    Region("uksouth", "UK South", "United Kingdom", "Europe", "", "50.941", "-0.799"),
    Region("westeurope", "West Europe", "Europe", "Europe", "northeurope", "52.3667", "4.9"),
    Region("westus", "West US", "United States", "US", "eastus", "37.783", "-122.417"),
    Region("westus2", "West US 2", "United States", "US", "", "47.233", "-119.852"),
    Region("westus3", "West US 3", "United States", "US", "", "33.448376", "-112.074036"),
)


def document(region: Region, subscription_id: str) -> Json:
    """Return a region as ARM shows it."""
    base = f"/subscriptions/{subscription_id}/locations"
    pairs = [{"name": region.pair, "id": f"{base}/{region.pair}"}] if region.pair else []
    return {
        "id": f"{base}/{region.name}",
        "name": region.name,
        "type": "Region",
        "displayName": region.display_name,
        "regionalDisplayName": f"({region.group}) {region.display_name}",
        "metadata": {
            "regionType": "Physical",
            "regionCategory": "Recommended",
            "geography": region.geography,
            "geographyGroup": region.group,
            "longitude": region.longitude,
            "latitude": region.latitude,
            "physicalLocation": "",
            "pairedRegion": pairs,
        },
    }
