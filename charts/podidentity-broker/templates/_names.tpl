{{/* What the broker's objects are named after, its Service and service account among them: the release. */}}
{{- define "podidentity-broker.name" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The name of what belongs to no namespace: two brokers of one name may be in two namespaces. */}}
{{- define "podidentity-broker.clusterName" -}}
{{- printf "%s:%s" .Release.Namespace (include "podidentity-broker.name" .) -}}
{{- end -}}

{{/* The Secret with the CA, and the ConfigMaps with its certificate. The broker knows them by this name. */}}
{{- define "podidentity-broker.authority" -}}
{{- printf "%s-ca" (include "podidentity-broker.name" .) -}}
{{- end -}}

{{/* What the Deployment selects by. It cannot be changed once installed. */}}
{{- define "podidentity-broker.selectors" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{- define "podidentity-broker.labels" -}}
{{ include "podidentity-broker.selectors" . }}
app.kubernetes.io/managed-by: {{ .Release.Service | quote }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* A list entry for each flag of a dict, unless its value is "". false and 0 are values. */}}
{{- define "podidentity-broker.flags" -}}
{{- range $name, $value := . }}
{{- if not (or (kindIs "invalid" $value) (eq ($value | toString) "")) }}
- {{ printf "--%s=%v" $name $value | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{/* The audience of the broker's own token, which the identities' federated credentials must name. */}}
{{- define "podidentity-broker.exchangeAudience" -}}
{{- .Values.exchangeAudience | default "api://AzureADTokenExchange" -}}
{{- end -}}

{{/* Namespaces with a bundle besides the broker's own, as a list in JSON. */}}
{{- define "podidentity-broker.bundleNamespaces" -}}
{{- without (.Values.bundleNamespaces | default list | uniq | sortAlpha) .Release.Namespace | toJson -}}
{{- end -}}
