"""`podidentity verify`: one identity on its whole way, on a cluster and an Azure subscription of the user's."""
