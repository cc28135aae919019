"""The exact names below `/metadata/instance` that a pod may ask: nothing else there goes on to IMDS.

As learn.microsoft.com/azure/virtual-machines/instance-metadata-service documents them, in small letters: IMDS takes any
case. A field that is newer than this list is still in the answer for its section.
"""

import re

_SECTIONS = frozenset({"compute", "network"})
_NAMES = """
additionalcapabilities address adminusername azenvironment bytespersecondthrottle caching communitygalleryimageid
compute computername createoption customdata datadisks diffdisksettings disablepasswordauthentication disksizegb
encryptionathost encryptionsettings enabled evictionpolicy exactversion extendedlocation hibernationenabled host
hostgroup id image imagereference interface ipaddress ipv4 ipv6 ishostcompatibilitylayervm isshareddisk isultradisk
keydata licensetype location lun macaddress manageddisk name network offer opspersecondthrottle option osdisk osprofile
ostype path physicalzone placementgroupid plan platformfaultdomain platformsubfaultdomain platformupdatedomain prefix
priority privateipaddress product provider publicipaddress publickeys publisher resourcedisk resourcegroupname
resourceid securebootenabled securityprofile securitytype sharedgalleryimageid size sku storageaccounttype
storageprofile subnet subscriptionid tags tagslist type uri userdata value version vhd virtualmachinescaleset
virtualtpmenabled vmid vmscalesetname vmsize writeacceleratorenabled zone
"""
_FIELDS = frozenset(_NAMES.split())
_INDEX = re.compile(r"[0-9]{1,3}")
_DEPTH = 8  # `network/interface/0/ipv4/ipAddress/0/privateIpAddress` has seven


def is_instance_field(path: str) -> bool:
    """Whether `path` is empty (all metadata), one of its sections, or made of a section's documented names alone."""
    if not path:
        return True
    names = path.lower().split("/")
    if names[0] not in _SECTIONS or len(names) > _DEPTH:
        return False
    return all(name in _FIELDS or _INDEX.fullmatch(name) for name in names)
