{{/* The chart's name: what objects are named after, whatever the release. */}}
{{- define "aad-pod-identity.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* Release and chart: what the user-facing roles are named after. */}}
{{- define "aad-pod-identity.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "aad-pod-identity.name" . -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "aad-pod-identity.mic" -}}
{{- printf "%s-mic" (include "aad-pod-identity.name" .) -}}
{{- end -}}

{{- define "aad-pod-identity.nmi" -}}
{{- printf "%s-nmi" (include "aad-pod-identity.name" .) -}}
{{- end -}}

{{/* What a Deployment or DaemonSet selects by. It cannot be changed once installed. */}}
{{- define "aad-pod-identity.selectors" -}}
app.kubernetes.io/name: {{ include "aad-pod-identity.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{- define "aad-pod-identity.labels" -}}
{{ include "aad-pod-identity.selectors" . }}
app.kubernetes.io/managed-by: {{ .Release.Service | quote }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "aad-pod-identity.managed" -}}
{{- if eq (.Values.operationMode | toString) "managed" -}}true{{- end -}}
{{- end -}}

{{/* "true" when pods may use identities of their own namespace only. */}}
{{- define "aad-pod-identity.namespaced" -}}
{{- $switch := .Values.forceNamespaced | toString | lower -}}
{{- if not (has $switch (list "true" "false")) -}}
{{- $switch = .Values.forceNameSpaced | toString | lower -}}
{{- end -}}
{{- if include "aad-pod-identity.managed" . -}}
true
{{- else if has $switch (list "true" "false") -}}
{{- $switch -}}
{{- else -}}
{{- include "aad-pod-identity.namespacedBefore" . -}}
{{- end -}}
{{- end -}}

{{/* What an upgrade finds: nobody's pods lose their identity because a default changed. A new release is namespaced. */}}
{{- define "aad-pod-identity.namespacedBefore" -}}
{{- $before := "true" -}}
{{- if .Release.IsUpgrade -}}
{{- $daemonSet := lookup "apps/v1" "DaemonSet" .Release.Namespace (include "aad-pod-identity.nmi" .) -}}
{{- range (dig "spec" "template" "spec" "containers" (list) $daemonSet) -}}
{{- if eq .name "nmi" -}}
{{- $before = "false" -}}
{{- range .env -}}
{{- if and (eq .name "FORCENAMESPACED") (eq (.value | toString | lower) "true") -}}{{- $before = "true" -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $before -}}
{{- end -}}

{{/* Whether /host/token is on the node's loopback, too: asked for, or the release may have had it before an upgrade. */}}
{{- define "aad-pod-identity.hostTokenLoopback" -}}
{{- $switch := .Values.nmi.hostTokenLoopback | default "" | toString -}}
{{- if $switch -}}
{{- $switch -}}
{{- else if .Release.IsUpgrade -}}
on
{{- end -}}
{{- end -}}

{{/* "true" when NMI may read Secrets of every namespace: asked for, or so it was before an upgrade. */}}
{{- define "aad-pod-identity.allSecrets" -}}
{{- $switch := .Values.rbac.allowAccessToSecrets | toString | lower -}}
{{- if has $switch (list "true" "false") -}}
{{- if eq $switch "true" }}true{{ end -}}
{{- else if .Release.IsUpgrade -}}
{{- $role := lookup "rbac.authorization.k8s.io/v1" "ClusterRole" "" (include "aad-pod-identity.nmi" .) -}}
{{- range (dig "rules" (list) $role) -}}
{{- if has "secrets" (.resources | default list) }}true{{ end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The namespaces whose Secrets NMI may read, as a list in JSON. */}}
{{- define "aad-pod-identity.secretNamespaces" -}}
{{- $namespaces := concat (.Values.rbac.secretNamespaces | default list) (.Values.nmi.secretNamespaces | default list) -}}
{{- range $identity := .Values.azureIdentities -}}
{{- if ne ($identity.type | default 0 | int) 0 -}}
{{- $namespaces = append $namespaces ($identity.namespace | default $.Release.Namespace) -}}
{{- end -}}
{{- end -}}
{{- $namespaces | uniq | sortAlpha | toJson -}}
{{- end -}}

{{/* Where MIC's lock is: where the predecessor's is, whatever the release's namespace, so that two never lead at once. */}}
{{- define "aad-pod-identity.lockNamespace" -}}
{{- .Values.mic.leaderElection.namespace | default "default" -}}
{{- end -}}

{{/* A list as the daemons' flags take it: written as a list, or with commas as the predecessor's chart takes it too. */}}
{{- define "aad-pod-identity.commas" -}}
{{- if kindIs "string" . }}{{ . }}{{ else }}{{ join "," . }}{{ end -}}
{{- end -}}

{{/* A list entry for each flag of a dict, unless its value is "". false and 0 are values. */}}
{{- define "aad-pod-identity.flags" -}}
{{- range $name, $value := . }}
{{- if not (or (kindIs "invalid" $value) (eq ($value | toString) "")) }}
{{- if kindIs "float64" $value }}{{ $value = int64 $value }}{{ end }}
- {{ printf "--%s=%v" $name $value | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{/* A text, though somebody wrote it as a number: Helm reads 1234567 as 1.234567e+06. */}}
{{- define "aad-pod-identity.text" -}}
{{- if kindIs "float64" . }}{{ int64 . }}{{ else }}{{ . }}{{ end -}}
{{- end -}}

{{/* "true" when a switch is on, however it is spelt; else nothing. */}}
{{- define "aad-pod-identity.on" -}}
{{- if has (. | toString | lower) (list "true" "t" "1") }}true{{ end -}}
{{- end -}}

{{/* nmi.namespaceAllowList; in standard mode NMI goes by the same rules as MIC. */}}
{{- define "aad-pod-identity.nmiAllowList" -}}
{{- if and (not (include "aad-pod-identity.managed" .)) (include "aad-pod-identity.on" .Values.mic.namespaceAllowList) -}}
true
{{- else -}}
{{- .Values.nmi.namespaceAllowList | default "" -}}
{{- end -}}
{{- end -}}

{{/* A port as a number: (list value default). */}}
{{- define "aad-pod-identity.port" -}}
{{- index . 0 | default (index . 1) | int -}}
{{- end -}}

{{/* A container's security context: uid 0, nothing writable, and the capabilities that are listed. */}}
{{- define "aad-pod-identity.locked" -}}
runAsUser: {{ .user }}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop:
    - ALL
  {{- with .capabilities }}
  add:
    {{- toYaml . | nindent 4 }}
  {{- end }}
seccompProfile:
  type: RuntimeDefault
{{- if ne (int .user) 0 }}
runAsNonRoot: true
{{- end }}
{{- end -}}

{{/* What a container needs that runs once or only waits: namespaces with a quota refuse pods that do not say. */}}
{{- define "aad-pod-identity.small" -}}
limits:
  memory: 128Mi
requests:
  cpu: 10m
  memory: 64Mi
{{- end -}}

{{/* Names of what MIC signs in with: the value, the Secret's key, the environment variable. */}}
{{- define "aad-pod-identity.credentials" -}}
- [cloud, Cloud, CLOUD]
- [subscriptionID, SubscriptionID, SUBSCRIPTION_ID]
- [resourceGroup, ResourceGroup, RESOURCE_GROUP]
- [vmType, VMType, VM_TYPE]
- [tenantID, TenantID, TENANT_ID]
- [clientID, ClientID, CLIENT_ID]
- [clientSecret, ClientSecret, CLIENT_SECRET]
- [useMSI, UseMSI, USE_MSI]
- [userAssignedMSIClientID, UserAssignedMSIClientID, USER_ASSIGNED_MSI_CLIENT_ID]
{{- end -}}

{{/* What MIC's container knows besides its flags, in the Deployment and when it is uninstalled. */}}
{{- define "aad-pod-identity.micEnvironment" -}}
- name: MIC_POD_NAMESPACE
  valueFrom:
    fieldRef:
      fieldPath: metadata.namespace
- name: FORCENAMESPACED
  value: {{ include "aad-pod-identity.namespaced" . | quote }}
{{- if .Values.mic.customCloud.enabled }}
- name: AZURE_ENVIRONMENT_FILEPATH
  value: {{ .Values.mic.customCloud.configPath | quote }}
{{- end }}
{{- if .Values.adminsecret }}
{{- range $names := include "aad-pod-identity.credentials" . | fromYamlArray }}
- name: {{ last $names | quote }}
  valueFrom:
    secretKeyRef:
      name: {{ include "aad-pod-identity.mic" $ | quote }}
      key: {{ index $names 1 }}
      {{- if not (hasKey $.Values.adminsecret (first $names)) }}
      optional: true
      {{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{/* MIC is root only where it reads files of the node, which are root's alone. */}}
{{- define "aad-pod-identity.micUser" -}}
{{- if or (not .Values.adminsecret) .Values.mic.customCloud.enabled .Values.mic.volumes }}0{{ else }}65532{{ end -}}
{{- end -}}

{{/* The files of the node that MIC reads, and where. */}}
{{- define "aad-pod-identity.micMounts" -}}
{{- with .Values.mic.volumeMounts }}
{{- toYaml . }}
{{ end }}
{{- if not .Values.adminsecret -}}
- name: k8s-azure-file
  mountPath: {{ .Values.mic.cloudConfig | quote }}
  readOnly: true
{{ end }}
{{- if .Values.mic.customCloud.enabled -}}
- name: k8s-azurestack-file
  mountPath: {{ .Values.mic.customCloud.configPath | quote }}
  readOnly: true
{{ end }}
{{- end -}}

{{- define "aad-pod-identity.micVolumes" -}}
{{- with .Values.mic.volumes }}
{{- toYaml . }}
{{ end }}
{{- if not .Values.adminsecret -}}
- name: k8s-azure-file
  hostPath:
    path: {{ .Values.mic.cloudConfig | quote }}
    type: File
{{ end }}
{{- if .Values.mic.customCloud.enabled -}}
- name: k8s-azurestack-file
  hostPath:
    path: {{ .Values.mic.customCloud.configPath | quote }}
    type: File
{{ end }}
{{- end -}}

{{/* How to uninstall. `helm upgrade --reuse-values` from the predecessor's chart brings none of our own values along. */}}
{{- define "aad-pod-identity.hooks" -}}
{{- .Values.uninstallHooks | default (dict "enabled" true "timeoutSeconds" 300) | toYaml -}}
{{- end -}}

{{/* Annotations of a hook: (list event weight). What failed stays, so that it can be looked at. */}}
{{- define "aad-pod-identity.hook" -}}
helm.sh/hook: {{ index . 0 }}
helm.sh/hook-weight: {{ index . 1 | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end -}}
